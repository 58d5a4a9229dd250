"""`compare`: several runs side by side, in a table and a picture. A sweep is compared by its name."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.rundir.environment import runs_root
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CONFIG
from core.rundir.ledger import Event, links_of, read_events
from launchers.chain.sweep_file import sweep_runs
from launchers.here.environment import ROOT
from launchers.runs import LaunchError, find_run
from launchers.show.results import SCORE
from launchers.show.run_facts import facts_from
from launchers.show.tables import console, duration, table

PICTURE_TIMEOUT_S = 120.0
FEW_RUNS = 4  # fit beside one another in 80 columns
MOST_COLUMNS = 4
FASTENER = re.compile(r"[^A-Za-z0-9._-]+")


def compare(names: Sequence[str], *, picture: Path | None, as_json: bool) -> int:
    """Print what the runs have reached and in what they differ; draw their curves."""
    runs = [run for name in dict.fromkeys(names) for run in sweep_runs(name) or [find_run(name)]]
    if len(runs) < 2:
        raise LaunchError("compare needs two runs or more, or the name of a sweep")
    ledgers = {run: read_events(run) for run in runs}
    settings = differing([_settings(run, events) for run, events in ledgers.items()])
    rows = [{**facts, "settings": mine} for facts, mine in zip(facts_from(ledgers), settings, strict=True)]
    where = picture or runs_root() / f"comparison_{FASTENER.sub('_', '_'.join(names))[:80]}.png"
    problem = _draw(runs, where.absolute())
    if as_json:
        print(json.dumps({"runs": rows, "picture": None if problem else str(where)}, indent=1))
    else:
        _print(rows)
        print(f"no picture: {problem}" if problem else f"see {where}")
    return int(ExitCode.DONE)


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    names = _scores(rows)
    reached = table("run", "state", "step", "loss", "training", *(re.sub("[/_]", " ", name) for name in names))
    for row in rows:
        loss = f"{row['loss']:.4g}" if isinstance(row["loss"], float) else ""
        scores = [_score(name, row["scores"].get(name)) for name in names]
        reached.add_row(row["run"], row["state"], f"{row['step']:,}", loss, duration(row["train_s"]), *scores)
    console().print(reached)
    _print_settings(rows)


def _print_settings(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one row a setting where the runs are few, else one row a run."""
    keys = list(dict.fromkeys(key for row in rows for key in row["settings"]))
    if not keys:
        print("their settings are the same")
    elif len(rows) <= FEW_RUNS:
        told = table("setting", *(row["run"] for row in rows))
        for key in keys:
            told.add_row(key, *(_cell(row["settings"].get(key)) for row in rows))
        console().print(told)
    else:
        told = table("run", *keys[:MOST_COLUMNS])
        for row in rows:
            told.add_row(row["run"], *(_cell(row["settings"].get(key)) for key in keys[:MOST_COLUMNS]))
        console().print(told)
        if len(keys) > MOST_COLUMNS:
            print(f"and {len(keys) - MOST_COLUMNS} more settings differ: {', '.join(keys[MOST_COLUMNS:])}")


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the scores to show: error rates before others, those of most runs first."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row["scores"]:
            match = SCORE.fullmatch(name)
            if not name.endswith("/words") and name != "step" and not (match and match["bound"]):
                counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], SCORE.fullmatch(name) is None, "wer" not in name))[:3]


def _score(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.2f} %" if SCORE.fullmatch(name) else f"{value:.5g}"


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("[", "\\[")


def _settings(run: Path, events: Sequence[Event]) -> dict[str, Any]:
    """Return the flat settings of a run; what was typed, where it has not got as far as to write them."""
    path = run / CONFIG
    if not path.exists():
        argvs = [link.submitted["argv"] for link in links_of(events) if "argv" in link.submitted]
        return dict(word.split("=", 1) for word in argvs[0][1:]) if argvs else {}
    import yaml

    try:
        return _flat(yaml.safe_load(path.read_text(encoding="utf-8")), "")
    except yaml.YAMLError:
        return {}


def _flat(section: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(section, dict) or not section:
        return {prefix: section} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def differing(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return of each run the settings that differ among those that have any. The name always differs."""
    known = [one for one in settings if one]
    keys = list(dict.fromkeys(key for one in known for key in one if key != "run.name"))
    differ = [key for key in keys if len({json.dumps(one.get(key), default=str) for one in known}) > 1]
    return [{key: one[key] for key in differ if key in one} for one in settings]


def _draw(runs: Sequence[Path], picture: Path) -> str | None:
    """Draw in a process of its own, as the launcher does without what a picture needs; return what went wrong."""
    command = [sys.executable, "-P", "-m", "core.report.comparison", str(picture), *map(str, runs)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=PICTURE_TIMEOUT_S, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return f"it took more than {PICTURE_TIMEOUT_S:.0f} s"
    if run.returncode == 0:
        return None
    return (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
