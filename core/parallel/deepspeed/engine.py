"""DeepSpeed's ZeRO behind the Engine protocol (Rajbhandari et al. 2020, arXiv:1910.02054).

Parameters and optimizer states are fp32 and forward runs under autocast, as in the torch engine. Checkpoints are the
torch engine's too: a run may go on at another number of ranks, at another stage, or with ddp or fsdp2; who wants only
the weights reads them without DeepSpeed. What is different here:

* A parameter that had no gradient in a step counts as one whose gradient is 0: it decays, its moments fade.
* At stages 1 to 3 the host waits for the gradient norm, once a step.
"""

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core.distributed import Ranks
from core.optim.optim import OptimConfig, build_optimizer
from core.parallel.deepspeed.tensors import ZeroTensors
from core.parallel.deepspeed.zero import ZeroConfig, library_config
from core.parallel.gradients import LossScale, clip_gradients
from core.parallel.preparation import COMPUTE_DTYPE, Thawing, compute_in, prepare_blocks, prepare_update
from core.parallel.settings import ParallelConfig
from core.parallel.weights import Named, Saved, load_tensors, load_weights, save_tensors, save_weights

logger = logging.getLogger(__name__)


class DeepSpeedEngine:
    """One DeepSpeed engine; it is told where a step ends, and neither scales losses nor schedules rates."""

    def __init__(self, model: nn.Module, config: ParallelConfig, *, optim: OptimConfig, ranks: Ranks) -> None:
        self._bare, self._ranks, self._max_norm = model, ranks, optim.max_norm
        self._stage = config.zero.stage
        _check(model, config, optim=optim, ranks=ranks)
        deepspeed = import_deepspeed(ranks)
        model.to(ranks.device)
        prepare_blocks(model, config)
        if config.precision in COMPUTE_DTYPE:
            compute_in(model, COMPUTE_DTYPE[config.precision], device_type=ranks.device.type)
        self._thawing = Thawing(model, optim)
        num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            args=SimpleNamespace(device_rank=ranks.device.index or 0),  # srun may show each task only its own GPU
            model=model,
            optimizer=zero_optimizer(model, optim, config.zero, ranks=ranks),
            config=library_config(config.zero, max_norm=optim.max_norm, num_trained=num_trained),
        )
        show_tensors_in_dataclasses(self._engine, stage=self._stage)
        self.model: nn.Module = self._engine
        if self._stage:
            kind = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}[optim.name]
            self._tensors = ZeroTensors(model, self._optimizer, stage=self._stage, kind=kind, rank=ranks.dp_rank)
        self._loss_scale = LossScale(config.loss_scale, ranks.device) if config.precision == "fp16" else None
        self._tell_scale()

    def begin_step(self, step: int) -> None:
        self._thawing.begin_step(step)

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        if self._loss_scale is not None and not self._stage:
            loss = loss * self._loss_scale.scale
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, *, max_norm: float | None, lr: float) -> Tensor:
        if max_norm != self._max_norm:
            raise ValueError(f"max_norm={max_norm} must stay {self._max_norm}: DeepSpeed takes it once, at the start")
        norm = self._step_sharded(lr) if self._stage else self._step_whole(lr)
        if self._loss_scale is not None:
            self._loss_scale.update((~torch.isfinite(norm)).float())
            self._tell_scale()
        return norm

    def _step_whole(self, lr: float) -> Tensor:
        """Update at stage 0, which neither tells the norm nor looks at it."""
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self._loss_scale is not None:
            self._loss_scale.unscale(gradients)
        norm = clip_gradients(gradients, max_norm=self._max_norm)
        prepare_update(self._optimizer, lr=lr, is_bad=(~torch.isfinite(norm)).float())
        self._engine.step()
        return norm

    def _step_sharded(self, lr: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        self._tensors.clear_gradients()
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self._ranks.device)

    def discard(self) -> None:
        if not self._stage:
            self._engine.zero_grad()
            return
        # DeepSpeed forgets what it keeps for a step where the norm is not finite, and nowhere else.
        invalid = torch.tensor(torch.inf, device=self._ranks.device)
        method, answer = ("_get_norm_groups", [invalid]) if self._stage == 3 else ("scaled_global_norm", invalid)
        setattr(self._optimizer, method, lambda: answer)
        try:
            self._engine.step()
        finally:
            delattr(self._optimizer, method)
        self._tensors.clear_gradients()

    def save(self, directory: Path) -> Future[None]:
        group = self._ranks.saves
        if not self._stage:
            return save_weights(self._bare, self._optimizer, directory, group=group)
        return save_tensors(self._tensors.share(group=group), directory, group=group)

    def load(self, directory: Path, *, weights_only: bool = False) -> None:
        group = self._ranks.votes
        if not self._stage:
            load_weights(self._bare, self._optimizer, directory, group=group, weights_only=weights_only)
            return

        def targets(saved: Saved) -> Named:
            return self._tensors.targets(saved, weights_only=weights_only)

        load_tensors(targets, directory, group=group, weights_only=weights_only)
        self._tensors.loaded()

    def state(self) -> dict[str, Any]:
        return {} if self._loss_scale is None else self._loss_scale.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        if self._loss_scale is not None:
            self._loss_scale.restore(state)
            self._tell_scale()

    def _tell_scale(self) -> None:
        if self._stage and self._loss_scale is not None:
            self._optimizer.override_loss_scale(float(self._loss_scale.scale))


def _check(model: nn.Module, config: ParallelConfig, *, optim: OptimConfig, ranks: Ranks) -> None:
    """Raise ValueError for what DeepSpeed cannot do, or would do otherwise than asked."""
    if ranks.tp_size > 1:
        raise ValueError(f"parallel.tp_size={ranks.tp_size} must be 1 with strategy deepspeed")
    if config.compile:
        raise ValueError("parallel.compile=true is not possible with strategy deepspeed; use ddp or fsdp2, or false")
    if config.zero.stage and optim.thaw is not None:
        raise ValueError(
            f"optim.thaw is not possible with parallel.zero.stage={config.zero.stage}: ZeRO would decay what is not "
            "trained yet; use stage 0, ddp or fsdp2"
        )
    for name, parameter in model.named_parameters():
        if not parameter.shape:
            raise ValueError(f"{name} has no dimensions, which DeepSpeed cannot take; give it the shape (1,)")


def import_deepspeed(ranks: Ranks) -> Any:
    """Import the package and join it to torch's process group: no MPI, no launcher of its own."""
    os.environ.setdefault("DS_ACCELERATOR", ranks.device.type)  # else it takes a GPU that this run does not want
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # asserted, even where srun counts
    try:
        import deepspeed
    except ImportError as error:
        advice = "pip install -c constraints.txt deepspeed"
        raise ValueError(f"parallel.strategy=deepspeed needs the package deepspeed: {advice}") from error
    route_logging()
    if ranks.device.type == "cpu":
        # Its only kernel for CPUs is compiled at first use, for half a minute, and not at all in a path with a space.
        deepspeed.ops.__compatible_ops__ = {}
    if not dist.is_initialized():  # DeepSpeed does not go without, even alone
        backend = "cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def route_logging() -> None:
    """Send what DeepSpeed logs the way of all logs, from WARNING up; it brings a handler of its own."""
    of_library = logging.getLogger("DeepSpeed")
    for handler in list(of_library.handlers):
        of_library.removeHandler(handler)
    of_library.propagate = True
    of_library.setLevel(logging.WARNING)
    of_library.addFilter(_is_news)
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated")  # it calls them by old names


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what is known: the loop tells skipped updates, SGD is tested here, dataclasses are shown to it below."""
    known = ("OVERFLOW!", "untested optimizer", "unknown inputs or outputs")
    return not any(text in record.getMessage() for text in known)


def zero_optimizer(model: nn.Module, optim: OptimConfig, config: ZeroConfig, *, ranks: Ranks) -> torch.optim.Optimizer:
    """Return torch's optimizer, or DeepSpeed's Adam where that is wanted and every rank's machine can build it."""
    ours = build_optimizer(model, optim)
    is_wanted = config.adam == "deepspeed" or (config.adam == "auto" and ranks.device.type == "cuda")
    if optim.name == "sgd" or config.stage == 0 or not is_wanted:
        return ours
    theirs, failure = None, None
    try:
        theirs = _build_adam(ours.param_groups, optim, on_host=config.offload_optimizer)
    except Exception as error:  # whatever compilers and their helpers raise
        failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    failures = [text for text in ranks.gather(failure) if text is not None]
    if failures and config.adam == "deepspeed":
        raise ValueError(f"parallel.zero.adam=deepspeed cannot be built here ({failures[0]}); use auto or torch")
    if failures or theirs is None:
        if ranks.is_first:
            logger.info("parallel.zero.adam=auto: torch's, since DeepSpeed's cannot be built here (%s)", failures[0])
        return ours
    return theirs


def _build_adam(groups: list[dict[str, Any]], optim: OptimConfig, *, on_host: bool) -> torch.optim.Optimizer:
    """Build DeepSpeed's kernel, which is compiled at first use in about a minute."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    parts = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
    common = {"lr": optim.lr, "betas": tuple(optim.betas), "eps": optim.eps}
    is_apart = optim.name == "adamw"
    built: torch.optim.Optimizer = (
        DeepSpeedCPUAdam(parts, **common, adamw_mode=is_apart)
        if on_host
        else FusedAdam(parts, **common, adam_w_mode=is_apart)
    )
    return built


def show_tensors_in_dataclasses(engine: Any, *, stage: int) -> None:
    """Let DeepSpeed find the outputs of modules that return dataclasses; it looks into tuples and dicts only.

    From those of the model it learns that backward begins, at stage 3 from those of each module that its parameters
    are needed again.
    """
    from deepspeed.runtime.utils import register_output_backward_hooks
    from deepspeed.runtime.zero.utils import apply_to_tensors_only

    def show_of_model(_: nn.Module, __: Any, output: Any) -> None:
        register_output_backward_hooks(list(_fields(output).values()), engine._backward_prologue)

    def show_of_module(module: Any, _: Any, output: Any) -> Any:
        shown = {name: apply_to_tensors_only(module.pre_bwd_fn.apply, value) for name, value in _fields(output).items()}
        return dataclasses.replace(output, **shown) if shown else output

    for module in engine.module.modules() if stage == 3 else ():
        module.register_forward_hook(show_of_module)
    engine.module.register_forward_hook(show_of_model)


def _fields(output: Any) -> dict[str, Any]:
    """Return what a dataclass holds; nothing of what DeepSpeed looks into itself."""
    if not dataclasses.is_dataclass(output) or isinstance(output, dict | tuple | list):
        return {}
    return {field.name: getattr(output, field.name) for field in dataclasses.fields(output) if field.init}
