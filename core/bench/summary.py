"""The files that a suite ends in, made of its manifest and its runs alone: at any time, of an unfinished suite too.

timing_points.csv eta_points.csv     every point of every run
per_run_metrics.csv                  figures of each run
group_summary.csv ranked_groups.csv  of each group; in the order of `rank_by`
leaks.json                           what `diagnose` finds
best_config.json .env, best_overrides.txt   of the first group in that order
summary.json summary.md summary.png
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.bench import kpis, points
from core.bench.best import write_best
from core.bench.manifest import (
    MANIFEST,
    SKIPPED,
    Row,
    latest_rows,
    locked,
    read_table,
    write_table,
)
from core.bench.page import page
from core.bench.plan import planned_runs
from core.bench.row import effective, read_context
from core.bench.settings import MODES, BenchConfig
from core.bench.telemetry.leaks import (
    FLAT,
    LEAK,
    Finding,
    as_records,
    diagnose,
    leaking,
    not_judged,
)
from core.config.load import load
from core.rundir.whole_files import now, write_json, write_whole

PICTURE = "summary.png"


def summarize(suite: Path) -> Mapping[str, Any]:
    """Write all files of a suite; the content of summary.json. FileNotFoundError where there is no suite."""
    begun = [mode for mode in MODES if (suite / f"bench_{mode}.yaml").exists()]
    if not begun:
        raise FileNotFoundError(f"{suite}: no suite; begin one with: python -m recipes.csa_stage1.bench ab name=...")
    configs: dict[str, BenchConfig] = {mode: load(BenchConfig, suite / f"bench_{mode}.yaml") for mode in begun}
    config = configs[begun[-1]]
    planned = [run for mode in begun for run in planned_runs(configs[mode], mode)]
    rows = [row for row in latest_rows(suite) if row["mode"] in configs]
    figures = [kpis.run_figures(configs[row["mode"]], row) for row in rows]
    groups = kpis.group_figures(figures, baseline=config.baseline_group)
    order = kpis.ranked(groups, by=config.rank_by)
    findings = {_name(row): diagnose(Path(row["run_dir"]), config.leaks) for row in rows}
    statuses = [row["status"] for row in rows]
    content = {
        "suite": suite.name,
        "time": now(),
        "modes": list(configs),
        "is_partial": statuses.count("ok") < len(planned),
        "runs_planned": len(planned),
        "runs_by_status": {status: statuses.count(status) for status in dict.fromkeys(statuses)},
        "rank_by": config.rank_by,
        "baseline_group": config.baseline_group,
        "best_group": order[0]["group"] if order else None,
        "groups": groups,
        "ranking": [group["group"] for group in order],
        "leaks": leaking(findings),
        "leaks_judged": sum(one.verdict in (FLAT, LEAK) for found in findings.values() for one in found),
        "leaks_not_judged": not_judged(findings),
    }
    with locked(suite):
        _write_points(suite, configs, rows)
        write_table(suite / "per_run_metrics.csv", kpis.METRIC_COLUMNS, figures)
        write_table(suite / "group_summary.csv", kpis.GROUP_COLUMNS, groups)
        write_table(suite / "ranked_groups.csv", kpis.RANKED_COLUMNS, order)
        write_leaks(suite, findings)
        write_best(suite, configs, rows, order)
        write_json(suite / "summary.json", content)
        has_picture = _draw(suite, configs, rows, figures)
        skipped = read_table(suite / SKIPPED, separator="\t")
        text = page(content, order, figures, skipped, picture=PICTURE if has_picture else None, manifest=MANIFEST)
        write_whole(suite / "summary.md", text)
    return content


def write_leaks(suite: Path, findings: Mapping[str, Sequence[Finding]]) -> None:
    write_json(suite / "leaks.json", {name: as_records(found) for name, found in findings.items()})


def diagnose_suite(suite: Path) -> Mapping[str, Sequence[Finding]]:
    """What every run of a suite shows, by its name; also written to leaks.json."""
    paths = [path for mode in MODES if (path := suite / f"bench_{mode}.yaml").exists()]
    if not paths:
        raise FileNotFoundError(f"{suite}: no suite")
    config = load(BenchConfig, paths[-1])
    findings = {_name(row): diagnose(Path(row["run_dir"]), config.leaks) for row in latest_rows(suite)}
    write_leaks(suite, findings)
    return findings


def _write_points(suite: Path, configs: Mapping[str, BenchConfig], rows: Sequence[Row]) -> None:
    timing, eta = [], []
    for row in rows:
        train = points.records(Path(row["run_dir"]))
        total_steps, mode = configs[row["mode"]].max_steps, effective(read_context(Path(row["run_dir"])), "eta_mode")
        place = {name: row[name] for name in ("mode", "group", "repeat", "train_log")}
        timing += [{**place, **point} for point in points.timing_points(train)]
        eta += [{**place, **point} for point in points.eta_points(train, total_steps=total_steps, mode=mode)]
    write_table(suite / "timing_points.csv", points.TIMING_COLUMNS, timing)
    write_table(suite / "eta_points.csv", points.ETA_COLUMNS, eta)


def _draw(
    suite: Path, configs: Mapping[str, BenchConfig], rows: Sequence[Row], figures: Sequence[kpis.Figures]
) -> bool:
    """Whether there was anything to draw."""
    from core.bench.picture import draw

    if not any(row["status"] == "ok" for row in rows):
        return False
    image = draw(rows, figures, total_steps={mode: config.max_steps for mode, config in configs.items()})
    temporary = suite / f".{PICTURE}.new"
    temporary.write_bytes(image)
    temporary.replace(suite / PICTURE)
    return True


def _name(row: Mapping[str, str]) -> str:
    return f"{row['mode']}-{row['group']}-r{row['repeat']}"
