"""The result table of a run, from the files of its directory."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.rundir.files import PICTURE, REPORT, SCORES
from core.rundir.ledger import Event, LinkAttempt, LinkRecord, attempts_of, links_of, newest_step, read_events
from core.rundir.metrics_log import latest_metrics
from core.rundir.whole_files import read_json
from launchers.show.tables import console, duration, table

SCORE = re.compile(r"(?P<split>[^/]+)/(?P<metric>wer|cer)_(?P<decoding>.+?)(?P<bound>_low|_high)?")


def read_scores(run: Path) -> dict[str, float]:
    """Return the latest evaluation: flat names to numbers; empty before there is one."""
    try:
        scores = read_json(run / SCORES)
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in scores.items() if isinstance(value, int | float)}


def summarize(
    run: Path, links: Sequence[LinkRecord], attempts: Sequence[LinkAttempt], metrics: Mapping[str, Any], *, step: int
) -> dict[str, Any]:
    """Return what a program may want to know of a run's result. The times are of all attempts, also requeued ones.

    `step`: from which the next link would go on.
    """
    return {
        "run": run.name,
        "step": max(step, int(metrics.get("step", 0))),
        "links": len(links),
        "seeds": [link.seed for link in links],
        "time_s": sum(attempt.wall_s or 0.0 for attempt in attempts),
        "train_s": sum(float(attempt.ended.get("train_s") or 0.0) for attempt in attempts),
        "scores": read_scores(run),
        "files": [str(run / name) for name in (REPORT, PICTURE) if (run / name).exists()],
    }


def print_results(run: Path, events: Sequence[Event] | None = None) -> None:
    """Print the result tables of a run. `events`: of its ledger, where that has been read."""
    events = read_events(run) if events is None else events
    links = links_of(events)
    step = newest_step(run, links)
    print_summary(summarize(run, links, attempts_of(events), latest_metrics(run, links), step=step))


def print_summary(facts: Mapping[str, Any]) -> None:
    """Print error rates by split and decoding, every other score, and what the run took."""
    scores: dict[str, float] = facts["scores"]
    out = console()
    plural = "" if facts["links"] == 1 else "s"
    out.print(f"\nrun {facts['run']}: step {facts['step']:,} after {facts['links']} link{plural}")
    found = {name: match for name in scores if (match := SCORE.fullmatch(name))}
    rates = table("split", "decoding", "WER %", "CER %", "words")
    for split, decoding in dict.fromkeys((match["split"], match["decoding"]) for match in found.values()):
        words = scores.get(f"{split}/words")
        cells = [_percent(scores, f"{split}/{metric}_{decoding}") for metric in ("wer", "cer")]
        rates.add_row(split, decoding, *cells, "" if words is None else f"{words:,.0f}")
    if found:
        out.print(rates)
    told = {"step", *(f"{match['split']}/words" for match in found.values())}  # elsewhere in these tables
    others = [name for name in scores if name not in found and name not in told]
    if others:
        rest = table("score", "value")
        for name in others:
            rest.add_row(name, f"{scores[name]:.6g}")
        out.print(rest)
    took = table("links", "seeds", "time", "of which training")
    seeds = ", ".join(str(seed) for seed in facts["seeds"])
    took.add_row(str(facts["links"]), seeds, duration(facts["time_s"]), duration(facts["train_s"]))
    out.print(took)
    for file in facts["files"]:
        out.print(f"see {file}", soft_wrap=True)


def _percent(scores: Mapping[str, float], name: str) -> str:
    """Return a rate with the 95 % interval where there is one: 42.3 (32.8 to 51.0)."""
    if name not in scores:
        return ""
    bounds = [scores.get(f"{name}_{bound}") for bound in ("low", "high")]
    interval = " to ".join(f"{100 * bound:.1f}" for bound in bounds if bound is not None)
    return f"{100 * scores[name]:.1f} ({interval})" if interval else f"{100 * scores[name]:.1f}"
