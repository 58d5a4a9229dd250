"""DeepSpeed made ready in this process: imported only here, joined to the ranks that are there, and kept quiet."""

import dataclasses
import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from core.distributed import Ranks
from core.optim.optim import OptimConfig, build_optimizer
from core.parallel.deepspeed.zero import ZeroConfig

logger = logging.getLogger(__name__)


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
