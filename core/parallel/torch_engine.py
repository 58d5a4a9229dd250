"""The engine of plain torch: a replica a rank (DDP) or parameters sharded over ranks (FSDP2)."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from core.distributed import Ranks
from core.optim.optim import OptimConfig, build_optimizer
from core.parallel.clipping import clip_gradients, local_parts
from core.parallel.loss_scale import LossScale
from core.parallel.preparation import COMPUTE_DTYPE, HasBlocks, Thawing, compute_in, prepare_blocks, prepare_update
from core.parallel.settings import ParallelConfig
from core.parallel.weights import load_weights, save_weights


class TorchEngine:
    """DDP or FSDP2 with autocast; FSDP2 also gathers blocks in that type. A bad update is skipped on the device."""

    def __init__(self, model: nn.Module, config: ParallelConfig, *, optim: OptimConfig, ranks: Ranks) -> None:
        self._ranks = ranks
        self._dtype = COMPUTE_DTYPE.get(config.precision)
        self._bare = model.to(ranks.device)
        prepare_blocks(model, config)
        if self._dtype is not None:
            compute_in(self._bare, self._dtype, device_type=ranks.device.type)
        self.model = self._shard() if config.strategy == "fsdp2" else self._replicate()
        self._optimizer = build_optimizer(self._bare, optim)
        self._thawing = Thawing(self._bare, optim)
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._loss_scale = LossScale(config.loss_scale, ranks.device) if config.precision == "fp16" else None

    def _replicate(self) -> nn.Module:
        if self._ranks.dp_size == 1:
            return self._bare
        device_ids = [self._ranks.device.index] if self._ranks.device.type == "cuda" else None
        assert self._ranks.mesh is not None
        group = self._ranks.mesh.get_group("dp")
        return DistributedDataParallel(
            self._bare, device_ids=device_ids, process_group=group, gradient_as_bucket_view=True
        )

    def _shard(self) -> nn.Module:
        if self._ranks.mesh is None:
            raise ValueError("parallel.strategy=fsdp2 needs at least 2 ranks; use ddp for one")
        policy = MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=torch.float32)
        for block in cast(HasBlocks, self._bare).blocks():
            fully_shard(block, mesh=self._ranks.mesh["dp"], mp_policy=policy)
        # What is in no block stays fp32 under autocast, as in ddp: inputs such as audio, scalars, losses.
        fully_shard(self._bare, mesh=self._ranks.mesh["dp"])
        return self._bare  # sharded in place

    def begin_step(self, step: int) -> None:
        if self._thawing.begin_step(step) and isinstance(self.model, DistributedDataParallel):
            self.model = self._replicate()  # it reduces what asked for gradients when it was made

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
            return
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        yield

    def backward(self, loss: Tensor) -> None:
        (loss if self._loss_scale is None else loss * self._loss_scale.scale).backward()

    def step(self, *, max_norm: float | None, lr: float) -> Tensor:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._loss_scale is not None:
            self._loss_scale.unscale(gradients)
        norm = clip_gradients(gradients, max_norm=max_norm)
        is_bad = (~torch.isfinite(norm)).float()
        prepare_update(self._optimizer, lr=lr, is_bad=is_bad)
        self._update()
        self.discard()
        if self._loss_scale is not None:
            self._loss_scale.update(is_bad)
        return norm

    def _update(self) -> None:
        """Make one optimizer step; fused SGD knows no DTensor: its lists are cut to this rank's shards first."""
        if not isinstance(self._optimizer, torch.optim.SGD):
            self._optimizer.step()
            return
        for group in self._optimizer.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if not trained:
                continue
            momentum = group["momentum"]
            buffers = [self._optimizer.state[p]["momentum_buffer"] for p in trained] if momentum else []
            with torch.no_grad():
                torch._fused_sgd_(
                    local_parts(trained), local_parts([p.grad for p in trained]), local_parts(buffers),
                    weight_decay=group["weight_decay"], momentum=momentum, lr=group["lr"],
                    dampening=group["dampening"], nesterov=group["nesterov"], maximize=group["maximize"],
                    is_first_step=False, found_inf=self._optimizer.found_inf,  # type: ignore[attr-defined]
                )  # fmt: skip

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def save(self, directory: Path) -> Future[None]:
        return save_weights(self._bare, self._optimizer, directory, group=self._ranks.saves)

    def load(self, directory: Path, *, weights_only: bool = False) -> None:
        load_weights(self._bare, self._optimizer, directory, group=self._ranks.votes, weights_only=weights_only)

    def state(self) -> dict[str, Any]:
        return {} if self._loss_scale is None else self._loss_scale.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        if self._loss_scale is not None:
            self._loss_scale.restore(state)
