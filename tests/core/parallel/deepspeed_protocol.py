"""DeepSpeed ZeRO 1 behind the Engine protocol, as small as can be: it proves the protocol and trains nobody's model."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.optim import OptimConfig, build_optimizer


class DeepSpeedProtocol:
    def __init__(self, model: nn.Module, *, optim: OptimConfig) -> None:
        os.environ.update(DS_BUILD_OPS="0", DS_ACCELERATOR="cpu")
        import deepspeed

        self._max_norm = optim.max_norm
        # Compiled at first use, 26 s long, and not at all where the environment's path holds a space.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(model, optim),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": optim.max_norm or 0.0,
                "zero_optimization": {"stage": 1},
                "zero_allow_untested_optimizer": True,
            },
        )
        self.model: nn.Module = self._engine

    def begin_step(self, step: int) -> None:
        pass

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, *, max_norm: float | None, lr: float) -> Tensor:
        if max_norm != self._max_norm:
            raise ValueError(f"max_norm={max_norm} must stay {self._max_norm}: DeepSpeed takes it once, at the start")
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def discard(self) -> None:
        raise NotImplementedError

    def save(self, directory: Path) -> Future[None]:
        raise NotImplementedError

    def load(self, directory: Path, *, weights_only: bool = False) -> None:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass
