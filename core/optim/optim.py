"""Optimizers: a section, the learning rate as a function of the step, and torch's own fused implementations."""

from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from core.config.schema import section
from core.optim.parameters import DecayConfig, FreezeConfig, ThawConfig, parameters
from core.optim.schedule import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    TriStage,
    WarmupStableDecay,
    ratio,
)


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
