"""Optimizers: a section, torch's own fused implementations, and the learning rate as a function of the step.

Each kind of schedule is a section; `ratio(schedule, update)` is what the peak rate is multiplied by in update 1, 2, ...
Warmup of W steps is update / W: the first update is not at rate 0, and update W is at the peak. There is no scheduler
state to lose.
"""

import math
from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from core.config.schema import section
from core.optim.parameters import DecayConfig, FreezeConfig, ThawConfig, parameters

Steps = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]


@section
class Constant:
    """A linear warmup, then the peak rate."""

    kind: Literal["constant"] = "constant"
    warmup_steps: Steps = 0


@section
class Linear:
    """A linear warmup, then linear to 0 in update `total_steps`: fairseq's polynomial_decay of power 1."""

    kind: Literal["linear"] = "linear"
    warmup_steps: Steps
    total_steps: Count

    def __post_init__(self) -> None:
        _check_order(warmup_steps=self.warmup_steps, total_steps=self.total_steps)


@section
class Cosine:
    """A warmup, then half a cosine down to `min_ratio` in update `total_steps` (Loshchilov and Hutter 2017).

    `warmup: log` is log(update) / log(warmup_steps), as DeepSpeed's WarmupCosineLR has it.
    """

    kind: Literal["cosine"] = "cosine"
    warmup_steps: Steps
    total_steps: Count
    min_ratio: Ratio = 0.0
    warmup: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        _check_order(warmup_steps=self.warmup_steps, total_steps=self.total_steps)


@section
class Exponential:
    """A linear warmup, then gamma ** ((update - warmup_steps) / decay_steps)."""

    kind: Literal["exponential"] = "exponential"
    warmup_steps: Steps
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.96
    decay_steps: Count = 10_000


@section
class TriStage:
    """A rise from `initial_ratio`, a hold, then exponentially down to `final_ratio` (wav2vec 2.0 fine-tuning)."""

    kind: Literal["tri_stage"] = "tri_stage"
    warmup_steps: Steps
    hold_steps: Steps
    decay_steps: Count
    initial_ratio: Ratio = 0.01
    final_ratio: Annotated[float, Field(gt=0, le=1)] = 0.05


@section
class WarmupStableDecay:
    """A linear warmup, the peak rate, then linear to `min_ratio` over the last `decay_steps` of `total_steps`."""

    kind: Literal["wsd"] = "wsd"
    warmup_steps: Steps
    decay_steps: Count
    total_steps: Count
    min_ratio: Ratio = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                f"total_steps={self.total_steps} must be at least warmup_steps={self.warmup_steps} "
                f"+ decay_steps={self.decay_steps}"
            )


ScheduleConfig = Constant | Linear | Cosine | Exponential | TriStage | WarmupStableDecay


def ratio(schedule: ScheduleConfig, update: int) -> float:
    """Return the share of the peak rate in update 1, 2, ...; after the end of a schedule its last value."""
    assert update >= 1
    warmup = schedule.warmup_steps
    if update <= warmup:
        return _warmup_ratio(schedule, update)
    after = update - warmup
    match schedule:
        case Constant():
            return 1.0
        case Linear(total_steps=total):
            return max(0.0, (total - update) / max(1, total - warmup))
        case Cosine(total_steps=total, min_ratio=low):
            progress = min(1.0, after / max(1, total - warmup))
            return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case Exponential(gamma=gamma, decay_steps=decay):
            return float(gamma ** (after / decay))
        case TriStage(hold_steps=hold, decay_steps=decay, final_ratio=low):
            return float(low ** min(1.0, max(0, after - hold) / decay))
        case WarmupStableDecay(total_steps=total, decay_steps=decay, min_ratio=low):
            return low + (1.0 - low) * min(1.0, max(0, total - update) / decay)


def _warmup_ratio(schedule: ScheduleConfig, update: int) -> float:
    if isinstance(schedule, Cosine) and schedule.warmup == "log":
        return math.log(update) / math.log(max(2, schedule.warmup_steps))
    start = schedule.initial_ratio if isinstance(schedule, TriStage) else 0.0
    return start + (1.0 - start) * update / schedule.warmup_steps


def _check_order(*, warmup_steps: int, total_steps: int) -> None:
    if warmup_steps > total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be at most total_steps={total_steps}")


@section
class OptimConfig:
    """The way that parameters are updated.

    `betas` and `eps` are for adamw and adam, `momentum` is for sgd. `adamw` decays weights apart from the gradient
    (Loshchilov and Hutter 2019), `adam` and `sgd` add `weight_decay` x weight to it.
    `max_norm`: gradients are scaled down to this global norm; null: not at all.
    `freeze`: what is never trained; `thaw`: what is trained later.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)]
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [0.9, 0.999])
    eps: Annotated[float, Field(gt=0)] = 1e-8
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_norm: Annotated[float, Field(gt=0)] | None = None
    schedule: Constant | Linear | Cosine | Exponential | TriStage | WarmupStableDecay = field(default_factory=Constant)
    decay: DecayConfig = field(default_factory=DecayConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    thaw: ThawConfig | None = None

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must be at least 0 and below 1")
        if self.momentum and self.name != "sgd":
            raise ValueError(f"momentum={self.momentum} must be 0 with name={self.name}: betas take its place")
        if self.name == "sgd" and (self.betas, self.eps) != ([0.9, 0.999], 1e-8):
            raise ValueError(
                f"betas={self.betas} and eps={self.eps} must be left out with name=sgd: momentum is its key"
            )


def learning_rate(config: OptimConfig, step: int) -> float:
    """Return the rate of the update that follows `step` updates: `step` is 0 for the first one."""
    return config.lr * ratio(config.schedule, step + 1)


def is_thawed(config: OptimConfig, step: int) -> bool:
    """Return whether the update that follows `step` updates trains what `thaw` keeps for later."""
    return config.thaw is None or step >= config.thaw.after_steps


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer of a model whose parameters are frozen already (`parameters.freeze`), on their device.

    Fused where torch has it: one kernel an update, skipped on the device where `found_inf` is set.
    """
    found = parameters(model, freeze=config.freeze, decay=config.decay)
    assert all(p.is_trained == p.tensor.requires_grad for p in found), "freeze(model, config.freeze) comes first"
    trained = [parameter for parameter in found if parameter.is_trained]
    if not trained:
        raise ValueError(f"freeze.patterns={config.freeze.patterns} must leave a parameter to train")
    groups = [
        {"params": [p.tensor for p in trained if p.decays], "weight_decay": config.weight_decay},
        {"params": [p.tensor for p in trained if not p.decays], "weight_decay": 0.0},
    ]
    filled: list[dict[str, Any]] = [group for group in groups if group["params"]]
    fused = all(p.tensor.device.type in ("cpu", "cuda") and p.tensor.is_floating_point() for p in trained)
    if config.name == "sgd":
        return torch.optim.SGD(filled, lr=config.lr, momentum=config.momentum, fused=fused)
    betas = (config.betas[0], config.betas[1])
    of_name = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return of_name(filled, lr=config.lr, betas=betas, eps=config.eps, fused=fused)
