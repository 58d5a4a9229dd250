"""Which runs a suite consists of, and what each sets: the one place where an axis of the benchmark meets a key."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
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
    "speech_attention": "model.speech.attention",
    "text_attention": "model.text.attention",
    "strategy": "parallel.strategy",
    "seconds": "plan.max_duration_s",
    "max_steps": "train.max_steps",
    "timing_window": "train.timing.window",
    "timing_rank_scope": "train.timing.rank_scope",
    "eta_mode": "train.timing.eta_mode",
    "eta_min_samples": "train.timing.eta_min_samples",
}
TO_THE_END = ("run.link_steps=null", "train.early_stop=null")  # a run does all of its steps, in one go
AXES = {"zero_stage": "z", "micro_batch": "mb", "num_workers": "w", "prefetch_factor": "p"}  # in a group's name
NAME = re.compile(r"[A-Za-z0-9._]{1,40}")


@dataclass(frozen=True)
class PlannedRun:
    """One run. `number` counts from 1 in its mode."""

    number: int
    mode: Mode
    group: str
    repeat: int
    variant: Variant

    @property
    def name(self) -> str:
        return f"{self.mode}-{self.group}-r{self.repeat}"


def planned_runs(config: BenchConfig, mode: Mode) -> list[PlannedRun]:
    """The runs of a mode in their order: all groups once, then all again, so that a slow hour hits each alike."""
    groups = config.ab if mode == "ab" else swept(config)
    if len(groups) < (2 if mode == "ab" else 1):
        what = "two groups under `ab`" if mode == "ab" else "values for an axis under `sweep`"
        raise ValueError(f"{mode} needs {what}")
    wrong = [name for name in groups if not NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"ab.{wrong[0]}: a group's name has letters, digits, dots and underscores, 40 at most")
    order = [(repeat, name) for repeat in range(1, config.repeats + 1) for name in groups]
    return [
        PlannedRun(number, mode, name, repeat, groups[name]) for number, (repeat, name) in enumerate(order, start=1)
    ]


def swept(config: BenchConfig) -> dict[str, Variant]:
    """A group for every combination of the axes that have values, e.g. `z0_mb128_w8_p4`."""
    sweep, rest = to_dict(config.sweep), to_dict(config.sweep.rest)
    axes = {axis: sweep[axis] for axis in AXES if sweep[axis]}
    if not axes:
        return {}
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return {
        "_".join(f"{AXES[axis]}{value}" for axis, value in point.items()): Variant(**{**rest, **point})
        for point in points
    }


def choices(config: BenchConfig, variant: Variant, gpus: Gpus) -> list[str]:
    """The overrides by which a group differs from the recipe's YAML: what a person would take over from it."""
    values: dict[str, Any] = {axis: value for axis, value in to_dict(variant).items() if axis != "overrides"}
    if variant.zero_stage is not None:
        values["strategy"] = "deepspeed"
    if variant.micro_batch is not None and (longest_s := (_base(config).get("plan") or {}).get("max_cut_s")):
        values["seconds"] = variant.micro_batch * longest_s  # else they would be the narrower limit
    numerics = config.numerics
    attention = "sdpa" if numerics.attention == "auto" else numerics.attention
    values |= {"speech_attention": attention, "text_attention": attention, "torch_compile": numerics.torch_compile}
    values["precision"] = gpus.precision if numerics.precision == "auto" else numerics.precision
    words = [f"{KEYS[axis]}={_text(value)}" for axis, value in values.items() if value is not None]
    return [*words, *config.overrides, *variant.overrides]


def overrides(config: BenchConfig, variant: Variant, gpus: Gpus) -> list[str]:
    """All that a run sets: its group's choices, its length, and how it is measured."""
    timing = config.timing
    measured = {
        "max_steps": config.max_steps,
        "timing_window": timing.window,
        "timing_rank_scope": timing.rank_scope,
        "eta_mode": timing.eta_mode,
        "eta_min_samples": timing.eta_min_samples,
    }
    words = [f"{KEYS[axis]}={value}" for axis, value in measured.items()]
    return [*words, *TO_THE_END, *_shorter_schedule(config), *choices(config, variant, gpus)]


def _shorter_schedule(config: BenchConfig) -> list[str]:
    """A schedule that says how long the run is must say the same as `train.max_steps`."""
    schedule = (_base(config).get("optim") or {}).get("schedule") or {}
    if "total_steps" not in schedule:
        return []
    words = [f"optim.schedule.total_steps={config.max_steps}"]
    if schedule.get("warmup_steps", 0) > config.max_steps:
        words.append(f"optim.schedule.warmup_steps={config.max_steps}")
    return words


def _base(config: BenchConfig) -> dict[str, Any]:
    """The recipe's YAML as it is written."""
    base: dict[str, Any] = yaml.safe_load((ROOT / config.config).read_text(encoding="utf-8"))
    return base


def setting(settings: Mapping[str, Any], axis: str) -> Any:
    """What a resolved configuration says of an axis; None where it has no such key."""
    place: Any = settings
    for key in KEYS[axis].split("."):
        if not isinstance(place, Mapping) or key not in place:
            return None
        place = place[key]
    return place


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
