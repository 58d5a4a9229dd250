"""What every engine does to a model before it is spread, and to an optimizer before its step."""

import logging
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

from core.optim.optim import OptimConfig, is_thawed
from core.optim.parameters import late_parameters
from core.parallel.settings import ParallelConfig

logger = logging.getLogger(__name__)

COMPUTE_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


class HasBlocks(Protocol):
    """A model that says which of its modules to checkpoint, compile and shard one by one."""

    def blocks(self) -> list[nn.Module]: ...


def prepare_update(optimizer: torch.optim.Optimizer, *, lr: float, is_bad: Tensor) -> None:
    """Let a fused optimizer's next step leave parameters and states alone where `is_bad` is 1; the host goes on."""
    optimizer.found_inf = is_bad  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group.get("momentum"):  # torch would leave the buffers of a skipped first update uninitialized
            for p in (p for p in group["params"] if p.grad is not None):
                if "momentum_buffer" not in optimizer.state[p]:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def compute_in(model: nn.Module, dtype: torch.dtype, *, device_type: str) -> None:
    """Autocast inside forward, so that it covers every call of the model itself."""
    model.forward = torch.autocast(device_type, dtype=dtype)(model.forward)


def prepare_blocks(model: nn.Module, config: ParallelConfig) -> None:
    """Apply activation checkpointing, then compile, block by block, in place."""
    if not (config.activation_checkpointing or config.compile):
        return
    blocks = set(cast(HasBlocks, model).blocks())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child not in blocks:
                continue
            if config.activation_checkpointing:
                child = checkpoint_wrapper(child, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
            if config.compile:
                child.compile()
            setattr(parent, name, child)


class Thawing:
    """The late start of some parameters of a model; those that never learn are frozen already."""

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        self._model, self._optim = model, optim
        self._late = [] if optim.thaw is None else late_parameters(model, optim.thaw)

    def begin_step(self, step: int) -> bool:
        """Prepare the update that follows `step` updates, and return whether anything changed."""
        if not self._late or self._late[0].requires_grad == is_thawed(self._optim, step):
            return False
        for parameter in self._late:
            parameter.requires_grad_(not parameter.requires_grad)
        trained = sum(parameter.numel() for parameter in self._model.parameters() if parameter.requires_grad)
        logger.info("update %d trains %s parameters (optim.thaw)", step + 1, f"{trained:,}")
        return True
