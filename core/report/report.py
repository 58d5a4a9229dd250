"""The report of a run: report.html, which needs no other file and no network, and report.png.

    write_report(Path("runs/demo"))

It is made of what lies in the run directory alone, so it can be made at any time, of unfinished and failed runs too.
"""

import base64
import difflib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from core.report.picture import draw
from core.rundir.exit_codes import EXIT_WORDS, ExitCode
from core.rundir.files import (
    BAD_SAMPLES,
    CLUSTERS,
    CONFIG,
    DONE,
    FAILED,
    METRICS,
    NEIGHBOURS,
    PICTURE,
    PREDICTIONS,
    REPORT,
    SCORES,
    SIMILARITIES,
    STOP,
)
from core.rundir.ledger import LinkRecord, read_links
from core.rundir.metrics_log import duration, read_metrics
from core.rundir.whole_files import appears_whole, now, read_json, read_records, write_whole

PICTURES = {
    CLUSTERS: ("Clusters", "clusters of frames"),
    SIMILARITIES: ("Similarities", "each utterance against each text"),
}
MAX_PREDICTIONS = 20

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2129; margin: 2rem auto; max-width: 1200px; padding: 0 1.5rem }
h1 { margin-bottom: 0 } h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem }
.facts { color: #4a4f58; margin-top: .2rem } img { width: 100% }
table { border-collapse: collapse } th { text-align: left; color: #4a4f58; font-weight: 600 }
td, th { padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #e6e8ec; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums } .name { color: #4a4f58; font-size: 13px }
ins { color: #c62f45; text-decoration: none; font-weight: 600 } del { color: #9aa0aa }
pre { background: #f5f6f8; padding: 1rem; overflow-x: auto; font-size: 13px }
summary { cursor: pointer; font-weight: 600; font-size: 1.15rem }
"""


def write_report(run_directory: Path) -> Path:
    """Write both files of a run directory and return the HTML's path."""
    metrics = read_metrics(run_directory / METRICS)
    links = read_links(run_directory)
    facts = _facts(run_directory, metrics, links)
    with appears_whole(run_directory / PICTURE, mode=0o600) as file:
        file.write(draw(metrics, heading=(run_directory.name, "  |  ".join(facts))))
    picture = base64.b64encode(draw(metrics)).decode()
    body = [
        f"<h1>{escape(run_directory.name)}</h1>",
        f'<p class="facts">{escape(" | ".join(facts))}</p>',
        f'<img alt="curves of the run" src="data:image/png;base64,{picture}">',
        *_scores(run_directory),
        *_pictures(run_directory),
        *_links(links),
        *_predictions(run_directory),
        *_neighbours(run_directory),
        *_config(run_directory),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(run_directory.name)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{chr(10).join(body)}\n</body></html>\n"
    )
    write_whole(run_directory / REPORT, page)
    return run_directory / REPORT


def _facts(run_directory: Path, metrics: Sequence[Mapping[str, Any]], links: Sequence[LinkRecord]) -> list[str]:
    step = max((record["step"] for record in metrics), default=0)
    states = {DONE: "done", FAILED: "failed", STOP: "stopped by a person"}
    is_done = bool(links) and links[-1].exit_code == ExitCode.DONE  # the marker follows the report
    state = next((word for marker, word in states.items() if (run_directory / marker).exists()), "unfinished")
    state = "done" if is_done else state
    facts = [state, f"{step:,} steps", f"{len(links)} link{'s' * (len(links) != 1)}"]
    if train_s := sum(link.ended.get("train_s") or 0 for link in links):
        facts.append(f"{duration(train_s)} of training")
    bad = len({record.get("sample_id") for record in read_records(run_directory / BAD_SAMPLES)})  # told of at each try
    facts.append(f"{bad:,} bad sample{'s' * (bad != 1)} skipped" if bad else "no bad samples")
    return [*facts, f"written {now()}"]


def _scores(run_directory: Path) -> list[str]:
    if not (run_directory / SCORES).exists():
        return []
    scores = read_json(run_directory / SCORES)
    rates = {name: f"{100 * value:.1f} %" for name, value in scores.items() if _is_rate(name) and value is not None}
    rows = [[_name(name), _number(rates.get(name, value))] for name, value in scores.items()]
    return ["<h2>Scores</h2>", *_table(["", ""], rows)]


def _pictures(run_directory: Path) -> list[str]:
    """Show what the recipe drew at its end."""
    page = []
    for name, (title, caption) in PICTURES.items():
        if (run_directory / name).exists():
            picture = base64.b64encode((run_directory / name).read_bytes()).decode()
            page += [f"<h2>{title}</h2>", f'<img alt="{caption}" src="data:image/png;base64,{picture}">']
    return page


def _links(links: Sequence[LinkRecord]) -> list[str]:
    if not links:
        return []
    rows = []
    for link in links:
        code, train_s = link.exit_code, link.ended.get("train_s")
        outcome = link.ended.get("reason") or ("" if code is None else EXIT_WORDS.get(code, f"exit code {code}"))
        cells = [
            _number(link.number),
            _text(link.job_id),
            _text(link.seed),
            _text(link.started.get("host")),
            _number(link.started.get("step")),
            _number(link.step),
            _text("" if train_s is None else duration(train_s)),
            _text(outcome if link.ended else "running or killed" if link.started else "waiting"),
        ]
        rows.append(cells)
    heads = ["link", "job", "seed", "node", "from step", "to step", "training", "why it ended"]
    return ["<h2>Links</h2>", *_table(heads, rows)]


def _predictions(run_directory: Path) -> list[str]:
    """Show the latest hypotheses beside their references, and how the first one came about."""
    records = [r for r in read_records(run_directory / PREDICTIONS) if {"step", "sample_id", "reference"} <= r.keys()]
    if not records:
        return []
    step = max(record["step"] for record in records)
    latest = {str(record["sample_id"]): record for record in records if record["step"] == step}
    rows = [
        [_name(sample), _text(record["reference"]), _marked(record["reference"], record.get("hypothesis", ""))]
        for sample, record in list(latest.items())[:MAX_PREDICTIONS]
    ]
    shown = f" (first {MAX_PREDICTIONS} of {len(latest)})" if len(latest) > MAX_PREDICTIONS else ""
    heads = ["sample", "reference", "hypothesis: <ins>wrong</ins>, <del>missing</del>"]
    page = [f"<h2>Predictions at step {step:,}{shown}</h2>", *_table(heads, rows)]
    first = next(iter(latest))
    history = {record["step"]: record for record in records if str(record["sample_id"]) == first}
    if len(history) > 1:
        steps = sorted(history)
        kept = [steps[round(i * (len(steps) - 1) / 9)] for i in range(10)] if len(steps) > 10 else steps
        rows = [[_number(s), _marked(history[s]["reference"], history[s].get("hypothesis", ""))] for s in kept]
        page += [f"<h2>{escape(first)} over the steps</h2>", *_table(["step", "hypothesis"], rows)]
    return page


def _neighbours(run_directory: Path) -> list[str]:
    """Show what lies nearest to some clips and texts of the latest search, with cosines, the own one's first."""
    records = list(read_records(run_directory / NEIGHBOURS))
    latest = [record for record in records if record["step"] == max(one["step"] for one in records)]
    page = []
    for direction in dict.fromkeys(record["direction"] for record in latest):
        of_direction = [record for record in latest if record["direction"] == direction]
        rows = [
            [_name(record["sample_id"]), _text(record["text"]), _number(record["cosine"])]
            + [_text(f"{one['cosine']:.3f} {one['text']}") for one in record["neighbours"]]
            for record in of_direction
        ]
        heads = [f"nearest {place + 1}" for place in range(max(len(row) for row in rows) - 3)]
        title = f"Nearest neighbours, {direction.replace('_', ' ')}"
        page += [f"<h2>{escape(title)}</h2>", *_table(["sample", "its text", "cosine", *heads], rows)]
    return page


def _config(run_directory: Path) -> list[str]:
    path = run_directory / CONFIG
    if not path.exists():
        return []
    text = escape(path.read_text(encoding="utf-8", errors="replace"))
    return ["<h2></h2>", f"<details><summary>Configuration</summary><pre>{text}</pre></details>"]


def _marked(reference: str, hypothesis: str) -> str:
    """Return a cell with the hypothesis, its wrong words and the words it lacks marked."""
    expected, heard, parts = reference.split(), hypothesis.split(), []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, expected, heard, autojunk=False).get_opcodes():
        missing, found = escape(" ".join(expected[i:j])), escape(" ".join(heard[k:m]))
        if kind == "equal":
            parts.append(found)
            continue
        parts += [f"<del>{missing}</del>"] * bool(missing) + [f"<ins>{found}</ins>"] * bool(found)
    return f"<td>{' '.join(parts)}</td>"


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    head = "".join(f"<th>{head}</th>" for head in heads)
    return ["<table>", f"<tr>{head}</tr>", *(f"<tr>{''.join(cells)}</tr>" for cells in rows), "</table>"]


def _name(value: Any) -> str:
    return f'<td class="name">{escape(str(value))}</td>'


def _text(value: Any) -> str:
    return f"<td>{'' if value is None else escape(str(value))}</td>"


def _number(value: Any) -> str:
    if isinstance(value, float):
        shown = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    elif isinstance(value, int) and not isinstance(value, bool):
        shown = f"{value:,}"
    else:
        shown = "" if value is None else escape(str(value))
    return f'<td class="number">{shown}</td>'


def _is_rate(name: str) -> bool:
    return name.rpartition("_")[2] in ("wer", "cer")
