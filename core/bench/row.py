"""The row of an attempt in run_manifest.tsv: how it ended, what it measured last, what it really ran with."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from core.bench import points
from core.bench.attempt import LOG, Attempt
from core.bench.plan import PlannedRun, setting
from core.bench.settings import ROOT, BenchConfig
from core.bench.telemetry.machine import Gpus
from core.bench.telemetry.recorder import GPU, HOST, num_rows
from core.rundir.files import CONFIG, RUN_CONTEXT, TRAIN_LOG
from core.rundir.whole_files import read_json

PREPARED = "prepare.json"
GIT = "git.json"  # of a suite: the code that began it
UNSTABLE_ITER, UNSTABLE_STEP = 2.0, 3.0  # p90 / p50 above which a run counts as unstable


def row_of(config: BenchConfig, run: PlannedRun, attempt: Attempt, gpus: Gpus) -> dict[str, Any]:
    """All columns of the manifest; empty what is not known."""
    ended = attempt.ended
    assert ended is not None
    settings = _yaml(attempt)
    context = read_context(attempt.directory)
    return {
        "mode": run.mode,
        "group": run.group,
        "repeat": run.repeat,
        "attempt": attempt.number,
        "status": ended.status,
        "exit_code": ended.exit_code,
        "reason": ended.reason,
        "duration_sec": round(ended.duration_s, 3),
        "stall_alerts": ended.stall_alerts,
        "spike_alerts": ended.spike_alerts,
        "port": attempt.begun.get("port", ""),
        "hostname": attempt.begun.get("host", ""),
        "run_dir": attempt.directory,
        "launcher_log": attempt.directory / LOG,
        "train_log": attempt.directory / TRAIN_LOG,
        **_measured(config, attempt, eta_mode=effective(context, "eta_mode")),
        **_effective(config, settings, context),
        **gpus.facts(),
        **_git(context, attempt.directory.parents[2]),
        **_telemetry(attempt),
    }


def tail_ratios(timing: list[points.Point], num_points: int) -> dict[str, float]:
    """p90 / p50 of the means of the last points: of iterations, of waiting for data, of the update."""
    tail = timing[-num_points:]
    found = {}
    for column, name in (("iter", "iter"), ("data", "data_wait"), ("step", "step")):
        middle = fmean(point[f"{name}_ms_p50"] for point in tail) if tail else 0.0
        if middle > 0:
            found[f"{column}_p90_over_p50"] = fmean(point[f"{name}_ms_p90"] for point in tail) / middle
    return found


def is_unstable(ratios: Mapping[str, float]) -> bool:
    return ratios.get("iter_p90_over_p50", 0.0) > UNSTABLE_ITER or ratios.get("step_p90_over_p50", 0.0) > UNSTABLE_STEP


def _measured(config: BenchConfig, attempt: Attempt, *, eta_mode: str | None) -> dict[str, Any]:
    train = points.records(attempt.directory)
    timing = points.timing_points(train)
    etas = points.eta_points(train, total_steps=config.max_steps, mode=eta_mode)
    ratios = tail_ratios(timing, config.tail_timing_points)
    found: dict[str, Any] = {**ratios, "unstable_run_flag": int(is_unstable(ratios))}
    if train:
        found["last_step"] = train[-1]["step"]
    if timing:
        found["last_iter_ms_p50"] = timing[-1]["iter_ms_p50"]
    if etas:
        last = etas[-1]
        found |= {"last_eta_step": last["step"], "last_eta_remaining_steps": last["remain_steps"]}
        found |= {f"last_{name}": last[name] for name in ("eta_sec", "eta_hms", "eta_mode")}
    return found


def _effective(config: BenchConfig, settings: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """What the resolved configuration says, and, of what it leaves open, the running process."""
    runtime, world_size = context.get("runtime", {}), context.get("distributed", {}).get("world_size")
    micro_batch = setting(settings, "micro_batch")
    per_step = (settings.get("plan") or {}).get("micro_batches_per_step")
    is_deepspeed = setting(settings, "strategy") == "deepspeed"
    axes = ("log_every_steps", "validation_every_steps", "checkpoint_every_steps", "num_workers", "prefetch_factor")
    return {
        **{axis: setting(settings, axis) for axis in axes},
        "zero_stage": setting(settings, "zero_stage") if is_deepspeed else None,
        "micro_batch": micro_batch,
        "world_size": world_size,
        "global_batch": micro_batch * per_step if micro_batch and per_step else None,
        "deterministic": _flag(runtime.get("deterministic")),
        "cudnn_benchmark": _flag(runtime.get("cudnn_benchmark")),
        "wall_clock_breakdown": int(is_deepspeed and bool(setting(settings, "wall_clock_breakdown"))),
        "dataset_manifest_path": (settings.get("data") or {}).get("train"),
        "dataset_use_trim": 0,  # `prepare` trims, never the training
        "dataset_offline_trimmed": _is_trimmed(settings),
        "enable_cuda_sync_timing": 0,  # the device's own events are read later
        "timing_rank_scope": setting(settings, "timing_rank_scope"),
        "precision_mode_req": config.numerics.precision,
        "precision_mode_effective": effective(context, "precision"),
        "model_load_dtype_effective": "fp32",  # masters are fp32 in every engine
        "attn_impl_effective": effective(context, "speech_attention"),
        "speech_attn_impl_effective": effective(context, "speech_attention"),
        "text_attn_impl_effective": effective(context, "text_attention"),
        "torch_compile_enabled": _flag(setting(settings, "torch_compile")),
        "tf32_enabled": _flag(runtime.get("tf32")),
    }


def _is_trimmed(settings: Mapping[str, Any]) -> int | None:
    """As `prepare` has noted it beside its manifests; None for a corpus that it has not made."""
    train = (settings.get("data") or {}).get("train")
    path = ROOT / train if train else None
    if path is None or not (path.parent / PREPARED).exists():
        return None
    return int(read_json(path.parent / PREPARED).get("trim_top_db") is not None)


def _git(context: Mapping[str, Any], suite: Path) -> dict[str, Any]:
    """Of the code that ran; where the run did not get that far, or ran a copy, of the code that began the suite."""
    git = context.get("git") or {}
    if not git.get("available"):
        git = read_json(suite / GIT)
    return {
        "git_commit_hash": git["commit_hash"],
        "git_commit_short": git["commit_short"],
        "git_branch": git["branch"],
        "git_dirty": _flag(git["dirty"]),
    }


def _telemetry(attempt: Attempt) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, file in (("gpu", GPU), ("host", HOST)):
        rows = num_rows(attempt.directory / file)
        found |= {f"{name}_telemetry_rows": rows, f"{name}_telemetry_empty_flag": int(rows == 0)}
    return found


def _flag(value: Any) -> int | None:
    return None if value is None else int(bool(value))


def _yaml(attempt: Attempt) -> dict[str, Any]:
    path = attempt.directory / CONFIG
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_context(run_dir: Path) -> dict[str, Any]:
    """What a run noted of itself; empty where it did not get that far."""
    path = run_dir / RUN_CONTEXT
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    return found


def effective(context: Mapping[str, Any], name: str) -> str | None:
    """What became of a setting in the running process; None where the run did not get that far."""
    found: str | None = context.get("effective", {}).get(name)
    return found
