"""An engine: a model and its optimizer made ready for many ranks. The only choice between strategies is made here.

Order of an update: `accumulate(last=)` around each forward and backward, `backward(loss)`, then `step(max_norm=, lr=)`.
The caller scales the loss by `dp_size / global targets`; every engine averages gradients over the dp ranks, so the
update is the gradient of (sum of losses) / (number of targets), however the batch was cut.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from core.config import section
from core.distributed import Ranks
from core.optim import OptimConfig


@section
class ParallelConfig:
    """How one model is spread over ranks.

    `strategy`: ddp (a replica a rank), fsdp2 (parameters sharded over the ranks).
    `precision`: fp32; bf16 or fp16 compute over fp32 parameters and optimizer states.
    """

    strategy: Literal["ddp", "fsdp2"] = "ddp"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False


class Engine(Protocol):
    """What the loop asks of a strategy."""

    model: nn.Module

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
    """The engine that `config.strategy` names, on this rank's device."""
    from core.parallel.torch_engine import TorchEngine

    return TorchEngine(model, config, optim=optim, ranks=ranks)
