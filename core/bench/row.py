"""The row of an attempt in run_manifest.tsv: how it ended, what it measured last, what it really ran with."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from core.bench import points
from core.bench.attempt import LOG, Attempt, read_facts
from core.bench.manifest import read_table
from core.bench.plan import PlannedRun, setting
from core.bench.settings import ROOT, BenchConfig
from core.bench.telemetry.machine import Gpus
from core.bench.telemetry.recorder import GPU, HOST
from core.rundir.files import CONFIG, RUN_CONTEXT, TRAIN_LOG
from core.rundir.whole_files import read_json

PREPARED = "prepare.json"
GIT = "git.json"  # of a suite: the code that began it
UNSTABLE_ITER, UNSTABLE_STEP = 2.0, 3.0  # p90 / p50 above which a run counts as unstable
# Columns that say what the resolved configuration does of an axis of the plan.
SETTINGS = (
    "log_every_steps", "validation_every_steps", "checkpoint_every_steps", "num_workers", "prefetch_factor",
    "micro_batch", "timing_rank_scope",
)  # fmt: skip


def row_of(config: BenchConfig, run: PlannedRun, attempt: Attempt, gpus: Gpus) -> dict[str, Any]:
    """Return all columns of the manifest; None or nothing for what is not known."""
    folder, ended, begun = attempt.directory, attempt.ended, attempt.begun
    assert ended is not None
    context = read_facts(folder / RUN_CONTEXT)
    return {
        **{name: getattr(run, name) for name in ("mode", "group", "repeat")},
        "attempt": attempt.number,
        **{name: getattr(ended, name) for name in ("status", "exit_code", "reason", "stall_alerts", "spike_alerts")},
        "duration_sec": round(ended.duration_s, 3),
        "port": begun.get("port"),
        "hostname": begun.get("host"),
        "run_dir": folder,
        "launcher_log": folder / LOG,
        "train_log": folder / TRAIN_LOG,
        **_measured(config, folder, eta_mode=setting(context, "effective.eta_mode")),
        **_effective(config, folder, context),
        **gpus.facts(),
        **_git(context, suite=folder.parents[2]),
        **_telemetry(folder),
    }


def tail_ratios(timing: list[points.Point], num_points: int) -> dict[str, float]:
    """Return p90 / p50 of the means of the last points: of iterations, of waiting for data, of the update."""
    tail = timing[-num_points:]
    found = {}
    for column, name in (("iter", "iter"), ("data", "data_wait"), ("step", "step")):
        middle = fmean(point[f"{name}_ms_p50"] for point in tail) if tail else 0.0
        if middle > 0:
            found[f"{column}_p90_over_p50"] = fmean(point[f"{name}_ms_p90"] for point in tail) / middle
    return found


def is_unstable(ratios: Mapping[str, float]) -> bool:
    """Tell whether iterations, or updates, differ so much that their mean says little."""
    return ratios.get("iter_p90_over_p50", 0.0) > UNSTABLE_ITER or ratios.get("step_p90_over_p50", 0.0) > UNSTABLE_STEP


def _measured(config: BenchConfig, folder: Path, *, eta_mode: str | None) -> dict[str, Any]:
    """Return what the last records have told."""
    train = points.train_records(folder)
    timing = points.timing_points(train)
    etas = points.eta_points(train, total_steps=config.max_steps)
    found: dict[str, Any] = {**tail_ratios(timing, config.tail_timing_points)}
    found["unstable_run_flag"] = int(is_unstable(found))
    if train:
        found["last_step"] = train[-1]["step"]
    if timing:
        found["last_iter_ms_p50"] = timing[-1]["iter_ms_p50"]
    if etas:
        found |= {"last_eta_step": etas[-1]["step"], "last_eta_remaining_steps": etas[-1]["remain_steps"]}
        found |= {"last_eta_sec": etas[-1]["eta_sec"], "last_eta_hms": etas[-1]["eta_hms"], "last_eta_mode": eta_mode}
    return found


def _effective(config: BenchConfig, folder: Path, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the resolved configuration says, and, of what it leaves open, the running process."""
    path = folder / CONFIG
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    micro_batch, precision = setting(settings, "micro_batch"), setting(settings, "precision")
    per_step, manifest = setting(settings, "plan.micro_batches_per_step"), setting(settings, "data.train")
    is_full = bool(micro_batch and per_step) and setting(settings, "plan.constant_cuts") is not False
    is_deepspeed = setting(settings, "strategy") == "deepspeed"
    attention = {side: setting(context, f"effective.{side}_attention") for side in ("speech", "text")}
    return {
        **{axis: setting(settings, axis) for axis in SETTINGS},
        "dataset_manifest_path": manifest,
        "zero_stage": setting(settings, "zero_stage") if is_deepspeed else None,
        "world_size": setting(context, "distributed.world_size"),
        "global_batch": micro_batch * per_step if is_full else None,  # else batches hold as many cuts as fit
        "deterministic": _flag(setting(context, "runtime.deterministic")),
        "cudnn_benchmark": _flag(setting(context, "runtime.cudnn_benchmark")),
        "wall_clock_breakdown": int(is_deepspeed and bool(setting(settings, "wall_clock_breakdown"))),
        "dataset_use_trim": 0,  # `prepare` trims, never the training
        "dataset_offline_trimmed": _is_trimmed(manifest),
        "enable_cuda_sync_timing": 0,  # the device's own events are read later
        "precision_mode_req": config.numerics.precision,
        "precision_mode_effective": setting(context, "effective.precision")
        or (precision if precision != "auto" else None),
        "model_load_dtype_effective": "fp32",  # masters are fp32 in every engine
        "attn_impl_effective": attention["speech"],
        **{f"{side}_attn_impl_effective": found for side, found in attention.items()},
        "torch_compile_enabled": _flag(setting(settings, "torch_compile")),
        "tf32_enabled": _flag(setting(context, "runtime.tf32")),
    }


def _is_trimmed(manifest: str | None) -> int | None:
    """Return what `prepare` has noted beside its manifests; None for a corpus that it has not made."""
    prepared = read_facts((ROOT / manifest).parent / PREPARED) if manifest else {}
    return _flag(prepared.get("trim_top_db") is not None) if prepared else None


def _git(context: Mapping[str, Any], *, suite: Path) -> dict[str, Any]:
    """Return the code that ran; where the run did not get that far, or ran a copy, the code that began the suite."""
    git = context["git"] if setting(context, "git.available") else read_json(suite / GIT)
    names = {"git_commit_hash": "commit_hash", "git_commit_short": "commit_short", "git_branch": "branch"}
    return {**{column: git[name] for column, name in names.items()}, "git_dirty": _flag(git["dirty"])}


def _telemetry(folder: Path) -> dict[str, int]:
    counts = {name: len(read_table(folder / file)) for name, file in (("gpu", GPU), ("host", HOST))}
    rows = {f"{name}_telemetry_rows": count for name, count in counts.items()}
    return rows | {f"{name}_telemetry_empty_flag": int(count == 0) for name, count in counts.items()}


def _flag(value: Any) -> int | None:
    return None if value is None else int(bool(value))
