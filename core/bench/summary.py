"""The files that a suite ends in, made of its manifest and its runs alone: at any time, of an unfinished suite too.

timing_points.csv eta_points.csv     every point of every run
per_run_metrics.csv                  figures of each run
group_summary.csv ranked_groups.csv  of each group; in the order of `rank_by`
leaks.json                           what `diagnose` finds
best_config.json .env, best_overrides.txt   of the first group in that order
summary.json summary.md summary.png

`python -m recipes.NAME.train --config FILE $(cat best_overrides.txt)` trains as the best group did.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.bench import kpis, points
from core.bench.attempt import OK, read_facts
from core.bench.manifest import LOCK, SKIPPED, Row, latest_rows, read_table, write_table
from core.bench.page import page
from core.bench.plan import choices, planned_runs, run_name, setting
from core.bench.settings import MODES, BenchConfig, LeakConfig
from core.bench.telemetry.leaks import TOO_SHORT, LeakFinding, diagnose, leaking, not_judged
from core.bench.telemetry.machine import Gpus
from core.config.load import load, to_dict
from core.rundir.files import RUN_CONTEXT
from core.rundir.whole_files import appears_whole, locked, now, write_json, write_whole

PICTURE = "summary.png"
BEST = ("best_config.json", "best_config.env", "best_overrides.txt")
# A variable of best_config.env, as CSRef calls it, and the column of the manifest that says what it was.
ENV: Mapping[str, str] = {
    **{name.upper(): name for name in ("zero_stage", "micro_batch", "num_workers", "prefetch_factor")},
    **{f"{name.upper()}_EVERY_STEPS": f"{name}_every_steps" for name in ("log", "validation", "checkpoint")},
    "PRECISION_MODE": "precision_mode_effective",
    "ATTN_IMPL": "attn_impl_effective",
    "ENABLE_TORCH_COMPILE": "torch_compile_enabled",
    "ENABLE_TF32": "tf32_enabled",
}
Findings = Mapping[str, Sequence[LeakFinding]]


def summarize(suite: Path) -> Mapping[str, Any]:
    """Write all files of a suite; return the content of summary.json. FileNotFoundError where there is no suite."""
    configs = _configs(suite)
    config = list(configs.values())[-1]
    planned = [run for mode in MODES if mode in configs for run in planned_runs(configs[mode], mode)]
    rows = [row for row in latest_rows(suite) if row["mode"] in configs]
    figures = [kpis.run_figures(configs[row["mode"]], row) for row in rows]
    groups = kpis.group_figures(figures, baseline=config.baseline_group)
    order = kpis.ranked(groups, by=config.rank_by)
    statuses = [row["status"] for row in rows]
    with locked(suite / LOCK):
        findings = _diagnose(suite, rows, config.leaks)
        content = {
            "suite": suite.name,
            "time": now(),
            "modes": list(configs),
            "is_partial": statuses.count(OK) < len(planned),
            "runs_planned": len(planned),
            "runs_by_status": {status: statuses.count(status) for status in dict.fromkeys(statuses)},
            "rank_by": config.rank_by,
            "baseline_group": config.baseline_group,
            "best_group": order[0]["group"] if order else None,
            "groups": groups,
            "ranking": [group["group"] for group in order],
            "leaks": leaking(findings),
            "leaks_judged": sum(one.verdict != TOO_SHORT for found in findings.values() for one in found),
            "leaks_not_judged": not_judged(findings),
        }
        _write_points(suite, configs, rows)
        write_table(suite / "per_run_metrics.csv", kpis.METRIC_COLUMNS, figures)
        write_table(suite / "group_summary.csv", kpis.GROUP_COLUMNS, groups)
        write_table(suite / "ranked_groups.csv", kpis.RANKED_COLUMNS, order)
        _write_best(suite, configs, rows, order)
        write_json(suite / "summary.json", content)
        good = [run for run in figures if run["status"] == OK]
        if good:
            _draw(suite, good, configs)
        text = page(content, order, figures, read_table(suite / SKIPPED), picture=PICTURE if good else None)
        write_whole(suite / "summary.md", text)
    return content


def diagnose_suite(suite: Path) -> Findings:
    """Return what every run of a suite shows, by its name, and write it to leaks.json."""
    config = list(_configs(suite).values())[-1]
    return _diagnose(suite, latest_rows(suite), config.leaks)


def _configs(suite: Path) -> dict[str, BenchConfig]:
    """Return the settings of each mode that was begun. FileNotFoundError where there is none."""
    paths = {mode: suite / f"bench_{mode}.yaml" for mode in MODES}
    configs: dict[str, BenchConfig] = {mode: load(BenchConfig, path) for mode, path in paths.items() if path.exists()}
    if not configs:
        raise FileNotFoundError(f"{suite}: no suite; begin one with: ./launch.sh bench ab --config FILE")
    return configs


def _diagnose(suite: Path, rows: Sequence[Row], config: LeakConfig) -> Findings:
    findings = {run_name(row): diagnose(Path(row["run_dir"]), config) for row in rows}
    write_json(suite / "leaks.json", {name: [vars(one) for one in found] for name, found in findings.items()})
    return findings


def _write_points(suite: Path, configs: Mapping[str, BenchConfig], rows: Sequence[Row]) -> None:
    timing, eta = [], []
    for row in rows:
        run_dir, total_steps = Path(row["run_dir"]), configs[row["mode"]].max_steps
        train, context = points.train_records(run_dir), read_facts(run_dir / RUN_CONTEXT)
        place = {name: row[name] for name in ("mode", "group", "repeat", "train_log")}
        place["eta_mode"] = setting(context, "effective.eta_mode")
        timing += [{**place, **point} for point in points.timing_points(train)]
        eta += [{**place, **point} for point in points.eta_points(train, total_steps=total_steps)]
    write_table(suite / "timing_points.csv", points.TIMING_COLUMNS, timing)
    write_table(suite / "eta_points.csv", points.ETA_COLUMNS, eta)


def _write_best(
    suite: Path, configs: Mapping[str, BenchConfig], rows: Sequence[Row], order: Sequence[kpis.Figures]
) -> None:
    """Write all three files; none of them where no group has a good run, nor from an earlier summary."""
    if not order:
        for name in BEST:
            (suite / name).unlink(missing_ok=True)
        return
    mode, group = order[0]["mode"], order[0]["group"]
    config = configs[mode]
    row = next(row for row in rows if (row["mode"], row["group"], row["status"]) == (mode, group, OK))
    variant = next(run.variant for run in planned_runs(config, mode) if run.group == group)
    words = choices(config, variant, Gpus.of_row(row))
    content = {
        "mode": mode,
        "group": group,
        "rank_by": config.rank_by,
        "recipe": config.recipe,
        "config": config.config,
        "overrides": words,
        "variant": to_dict(variant),
        "ran_with": {column: row[column] for column in ENV.values()},
        **{name: order[0][name] for name in ("tail_samples_per_sec_mean", "tail_iter_ms_mean", "stability_score")},
    }
    write_json(suite / BEST[0], content)
    env = {"BEST_MODE": mode, "BEST_GROUP": group, **{name: row[column] for name, column in ENV.items()}}
    write_whole(suite / BEST[1], "".join(f"{name}={shlex.quote(value)}\n" for name, value in env.items()))
    write_whole(suite / BEST[2], "".join(f"{word}\n" for word in words))


def _draw(suite: Path, runs: Sequence[kpis.Figures], configs: Mapping[str, BenchConfig]) -> None:
    from core.bench.page import draw

    with appears_whole(suite / PICTURE, mode=0o600) as file:
        file.write(draw(runs, total_steps={mode: config.max_steps for mode, config in configs.items()}))
