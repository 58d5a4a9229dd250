"""An engine: a model and its optimizer made ready for many ranks. The only choice between strategies is made here.

Order of an update: `begin_step(step)`, `accumulate(last=)` around each forward and backward, `backward(loss)`, then
`step(max_norm=, lr=)`.
The caller scales the loss by `dp_size / global targets`; every engine averages gradients over the dp ranks, so the
update is the gradient of (sum of losses) / (number of targets), however the batch was cut.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from core.config import section
from core.distributed import Ranks
from core.optim import OptimConfig
from core.parallel.loss_scale import LossScaleConfig
from core.parallel.zero import ZeroConfig

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@section
class ParallelConfig:
    """How one model is spread over ranks.

    `strategy`: ddp (a replica a rank), fsdp2 (parameters sharded over the ranks), deepspeed (as `zero` says).
    `precision`: fp32; bf16 or fp16 compute over fp32 parameters and optimizer states; auto: see `resolve_precision`.
    `loss_scale` counts for fp16 alone and `zero` for deepspeed alone: another strategy is one word away.
    """

    strategy: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    precision: Precision = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)


class Engine(Protocol):
    """What the loop asks of a strategy."""

    model: nn.Module

    def begin_step(self, step: int) -> None:
        """Make ready for the update that follows `step` updates: what `optim.thaw` lets it train. On all ranks."""

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Around one forward and backward; gradients are reduced over ranks in the one that is `last` of the step."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar."""

    def step(self, *, max_norm: float | None, lr: float) -> Tensor:
        """Clip, update, clear. Returns the gradient norm before clipping, on the device.

        Where the norm is not finite, parameters and optimizer states stay as they were, on every rank alike.
        """

    def discard(self) -> None:
        """Forget the gradients of a step that had no targets anywhere."""

    def save(self, directory: Path) -> Future[None]:
        """Write this rank's share of weights and optimizer; done when it is on disk. Training may go on at once."""

    def load(self, directory: Path, *, weights_only: bool = False) -> None:
        """Read back what `save` wrote, at this or another number of ranks; or only the weights of it."""

    def state(self) -> dict[str, Any]:
        """Small things for state.json, such as the fp16 loss scale."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take `state()` back."""


def build_engine(model: nn.Module, config: ParallelConfig, *, optim: OptimConfig, ranks: Ranks) -> Engine:
    """The engine that `config.strategy` names, on this rank's device. ValueError for what it cannot do."""
    config = replace(config, precision=resolve_precision(config.precision, ranks))
    check_precision(config, ranks)
    if config.precision == "bf16" and ranks.device.type == "cpu":
        from core.numerics import check_model

        check_model(model, ranks)
    if config.strategy == "deepspeed":
        from core.parallel.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(model, config, optim=optim, ranks=ranks)
    if ranks.is_first and config.zero != ZeroConfig():
        logger.info("parallel.zero is left aside: it counts for strategy deepspeed, not %s", config.strategy)
    from core.parallel.torch_engine import TorchEngine

    return TorchEngine(model, config, optim=optim, ranks=ranks)


def resolve_precision(precision: Precision, ranks: Ranks) -> Precision:
    """`auto` is bf16 where the GPUs of all ranks compute in it, else fp16; fp32 on a CPU. All ranks together."""
    if precision != "auto":
        return precision
    if ranks.device.type != "cuda":
        return "fp32"
    return "bf16" if all(ranks.gather(torch.cuda.is_bf16_supported(including_emulation=False))) else "fp16"


def check_precision(config: ParallelConfig, ranks: Ranks) -> None:
    """ValueError where the device cannot compute in it."""
    if config.precision == "fp16" and ranks.device.type == "cpu":
        raise ValueError("parallel.precision=fp16 needs a GPU; use fp32 or bf16 on a CPU")
    if ranks.is_first and config.precision != "fp16" and config.loss_scale != LossScaleConfig():
        logger.info("parallel.loss_scale is left aside: it counts for precision fp16, not %s", config.precision)
