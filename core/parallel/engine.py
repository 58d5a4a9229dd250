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
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from core.distributed import Ranks
from core.optim.optim import OptimConfig
from core.parallel.deepspeed.zero import ZeroConfig
from core.parallel.settings import ParallelConfig, check_precision, resolve_precision

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """The interface of a strategy for the training loop."""

    model: nn.Module

    def begin_step(self, step: int) -> None:
        """Prepare the update that follows `step` updates: what `optim.thaw` lets it train. On all ranks."""

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Wrap one forward and backward; gradients are reduced over ranks in the one that is `last` of the step."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar."""

    def step(self, *, max_norm: float | None, lr: float) -> Tensor:
        """Clip, update, clear; return the gradient norm before clipping, on the device.

        Where the norm is not finite, parameters and optimizer states stay as they were, on every rank alike.
        """

    def discard(self) -> None:
        """Forget the gradients of a step that had no targets anywhere."""

    def save(self, directory: Path) -> Future[None]:
        """Write this rank's share of weights and optimizer in the background; done when it is on disk."""

    def load(self, directory: Path, *, weights_only: bool = False) -> None:
        """Read back what `save` wrote, at this or another number of ranks; or only the weights of it."""

    def state(self) -> dict[str, Any]:
        """Return small things for state.json, such as the fp16 loss scale."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state()` gave."""


def build_engine(model: nn.Module, config: ParallelConfig, *, optim: OptimConfig, ranks: Ranks) -> Engine:
    """Build the engine that `config.strategy` names, on this rank's device. ValueError for what it cannot do."""
    config = replace(config, precision=resolve_precision(config.precision, ranks))
    check_precision(config, ranks)
    if config.precision == "bf16" and ranks.device.type == "cpu":
        from core.numerics import check_model

        check_model(model, ranks)
    if config.strategy == "deepspeed":
        from core.parallel.deepspeed.engine import DeepSpeedEngine

        return DeepSpeedEngine(model, config, optim=optim, ranks=ranks)
    if ranks.is_first and config.zero != ZeroConfig():
        logger.info("parallel.zero is left aside: it counts for strategy deepspeed, not %s", config.strategy)
    from core.parallel.torch_engine import TorchEngine

    return TorchEngine(model, config, optim=optim, ranks=ranks)
