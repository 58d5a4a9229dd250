"""Which runs a suite consists of, and what each sets: the one place where an axis of the benchmark meets a key."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from core.bench.settings import ROOT, BenchConfig, Mode, Variant
from core.bench.telemetry.machine import Gpus
from core.config.load import to_dict

# Axis of the benchmark -> key of the recipe.
KEYS: Mapping[str, str] = {
    "zero_stage": "parallel.zero.stage",
    "wall_clock_breakdown": "parallel.zero.wall_clock_breakdown",
    "micro_batch": "plan.max_cuts",
    "num_workers": "loader.num_workers",
    "prefetch_factor": "loader.prefetch",
    "log_every_steps": "train.log_every_steps",
    "validation_every_steps": "train.validate_every_steps",
    "checkpoint_every_steps": "checkpoint.every_steps",
    "precision": "parallel.precision",
    "torch_compile": "parallel.compile",
    "strategy": "parallel.strategy",
    "timing_rank_scope": "train.timing.rank_scope",
}
AXES = {"zero_stage": "z", "micro_batch": "mb", "num_workers": "w", "prefetch_factor": "p"}  # in a group's name
NAME = re.compile(r"[A-Za-z0-9._]{1,40}")


@dataclass(frozen=True)
class PlannedRun:
    """A run of a suite. `number` counts from 1 in its mode."""

    number: int
    mode: Mode
    group: str
    repeat: int
    variant: Variant

    @property
    def name(self) -> str:
        return run_name(vars(self))


def run_name(row: Mapping[str, Any]) -> str:
    return f"{row['mode']}-{row['group']}-r{row['repeat']}"


def planned_runs(config: BenchConfig, mode: Mode) -> list[PlannedRun]:
    """Return the runs of a mode in their order: all groups once, then all again, so that a slow hour hits each alike.

    Raises ValueError where nothing would be compared.
    """
    groups = config.ab if mode == "ab" else swept(config)
    if len(groups) < (2 if mode == "ab" else 1):
        what = "two groups under `ab`" if mode == "ab" else "values for an axis under `sweep`"
        raise ValueError(f"{mode} needs {what}")
    wrong = [name for name in groups if not NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"ab.{wrong[0]}: a group's name has letters, digits, dots and underscores, 40 at most")
    order = itertools.product(range(1, config.repeats + 1), groups)
    return [PlannedRun(number, mode, name, repeat, groups[name]) for number, (repeat, name) in enumerate(order, 1)]


def swept(config: BenchConfig) -> dict[str, Variant]:
    """Return a group for every combination of the axes that have values, e.g. `z0_mb128_w8_p4`."""
    axes = {axis: values for axis in AXES if (values := getattr(config.sweep, axis))}
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
    return {
        "_".join(f"{AXES[axis]}{value}" for axis, value in point.items()): replace(config.sweep.rest, **point)
        for point in points
    }


def choices(config: BenchConfig, variant: Variant, gpus: Gpus) -> list[str]:
    """Return the overrides by which a group differs from the recipe's YAML: what a person would take over from it."""
    base, numerics = _base(config), config.numerics
    chosen: dict[str, Any] = {KEYS[axis]: value for axis, value in to_dict(variant).items() if axis != "overrides"}
    if variant.zero_stage is not None:
        chosen[KEYS["strategy"]] = "deepspeed"
    if variant.micro_batch is not None and (longest_s := (base.get("plan") or {}).get("max_cut_s")):
        chosen["plan.max_duration_s"] = variant.micro_batch * longest_s  # else it would be the narrower limit
    chosen |= _attention(numerics.attention, base, source=config.config)
    chosen[KEYS["torch_compile"]] = numerics.torch_compile
    chosen[KEYS["precision"]] = gpus.precision if numerics.precision == "auto" else numerics.precision
    words = [f"{key}={_text(value)}" for key, value in chosen.items() if value is not None]
    return [*words, *config.overrides, *variant.overrides]


def overrides(config: BenchConfig, variant: Variant, gpus: Gpus) -> list[str]:
    """Return all that a run sets: its length in one go, how it is measured, and its group's choices."""
    timing = [f"train.timing.{name}={value}" for name, value in to_dict(config.timing).items()]
    to_the_end = ["run.link_steps=null", "train.early_stop=null", *_shorter_schedule(config)]
    return [f"train.max_steps={config.max_steps}", *timing, *to_the_end, *choices(config, variant, gpus)]


def setting(settings: Mapping[str, Any], key: str) -> Any:
    """Return what a resolved configuration says of an axis or a key; None where it has no such key."""
    place: Any = settings
    for name in KEYS.get(key, key).split("."):
        place = place.get(name) if isinstance(place, Mapping) else None
    return place


def _attention(wanted: str | None, base: Mapping[str, Any], *, source: str) -> dict[str, str]:
    """Return the attention of every part of the model that offers the choice. ValueError where none does."""
    parts = {f"model.{name}": part for name, part in (base.get("model") or {}).items()}
    found = [name for name, part in parts.items() if setting({"part": part}, "part.kind") == "pretrained"]
    if wanted is None or (wanted == "auto" and not found):
        return {}
    if not found:
        raise ValueError(f"numerics.attention={wanted}: {source} has no model of `kind: pretrained`; use null")
    return dict.fromkeys((f"{name}.attention" for name in found), "sdpa" if wanted == "auto" else wanted)


def _shorter_schedule(config: BenchConfig) -> list[str]:
    """Return what makes a schedule fit in the run: its length is that of the run, its warm-up no longer."""
    schedule = setting(_base(config), "optim.schedule") or {}
    is_long = {
        "total_steps": "total_steps" in schedule,
        "warmup_steps": schedule.get("warmup_steps", 0) > config.max_steps,
    }
    return [f"optim.schedule.{name}={config.max_steps}" for name, changes in is_long.items() if changes]


def _base(config: BenchConfig) -> dict[str, Any]:
    """Return the recipe's YAML as it is written."""
    base: dict[str, Any] = yaml.safe_load((ROOT / config.config).read_text(encoding="utf-8"))
    return base


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
