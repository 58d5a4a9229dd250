"""The tensors of a model and its optimizer under the flat names by which checkpoints know them.

`model.<parameter or buffer>`, `optimizer.<parameter>.<state>`, and one marker `optimizer_class.<name>`, by which a
checkpoint of another optimizer is refused. Hyperparameters are not among them: they come from the config. Names are
those of the bare model: wrappers (DDP, compile, activation checkpointing) leave no trace in them.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from core.parallel.flat_shard import FlatShard

WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")

T = TypeVar("T", bound=Tensor | FlatShard)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers, as they are (no copies)."""
    tensors = {f"model.{bare_name(name)}": value for name, value in _bare(model).state_dict().items()}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}: a checkpoint holds only tensors")
    return tensors


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's states, as they are; a plain number becomes a tensor of no dimensions."""
    tensors: dict[str, Tensor] = {f"optimizer_class.{type(optimizer).__name__}": torch.zeros(())}
    for name, parameter in _parameters(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, int | float):
                value = torch.tensor(value, dtype=torch.float64)
            elif value is not None and not isinstance(value, Tensor):
                raise ValueError(f"optimizer.{name}.{key} is a {type(value).__name__}: a checkpoint holds only tensors")
            if value is not None:
                tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def optimizer_targets(model: nn.Module, optimizer: Optimizer, *, saved: Iterable[str]) -> dict[str, Tensor]:
    """Return the states to read a checkpoint with the names `saved` into.

    An optimizer makes a parameter's state at its first step with a gradient. Here it follows the checkpoint: states
    are made where it has some and dropped where it has none.
    """
    has_state = {name.removeprefix("optimizer.").rpartition(".")[0] for name in saved if name.startswith("optimizer.")}
    for name, parameter in _parameters(model, optimizer):
        if name not in has_state:
            optimizer.state.pop(parameter, None)
    make_states(optimizer, [parameter for name, parameter in _parameters(model, optimizer) if name in has_state])
    return optimizer_tensors(model, optimizer)


def restore_numbers(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Take the states that are plain numbers from the tensors that `optimizer_targets` gave, once they are read."""
    for name, parameter in _parameters(model, optimizer):
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, int | float):
                state[key] = type(value)(tensors[f"optimizer.{name}.{key}"].item())


def share_of_rank(model: nn.Module, optimizer: Optimizer, *, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Return what this rank of `group` writes of a model and its optimizer; see `partition_tensors`."""
    of_model = model_tensors(model)
    tensors = of_model | optimizer_tensors(model, optimizer)
    return partition_tensors(tensors, of_first=of_model.keys() - parameter_names(model), group=group)


def parameter_names(model: nn.Module) -> set[str]:
    """Return the names in a checkpoint of a model's parameters; what else the model has are buffers."""
    return {f"model.{bare_name(name)}" for name, _ in _bare(model).named_parameters(remove_duplicate=False)}


def partition_tensors(tensors: Mapping[str, T], *, of_first: Set[str], group: dist.ProcessGroup | None) -> dict[str, T]:
    """Return what this rank of `group` writes: its shards, and its part of the tensors that all ranks hold alike.

    The latter are divided by size, so that neither copying nor writing is done twice; but those named `of_first` are
    rank 0's: buffers may differ between replicas, and rank 0's count, as in DDP.
    """
    rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    whole = {name: value for name, value in tensors.items() if not isinstance(value, DTensor | FlatShard)}
    share = {name: value for name, value in tensors.items() if name not in whole}
    heap = [(0, writer) for writer in range(size)]  # (bytes so far, rank)
    for name in sorted(whole, key=lambda name: (-whole[name].nbytes, name)):
        writer = 0
        if name not in of_first:
            num_bytes, writer = heap[0]
            heapq.heapreplace(heap, (num_bytes + whole[name].nbytes, writer))
        if writer == rank:
            share[name] = whole[name]
    return share


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def bare_name(wrapped: str) -> str:
    for wrapper in WRAPPERS:
        wrapped = wrapped.replace(wrapper, "")
    return wrapped


def _parameters(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """Return the optimizer's parameters with the names that the model gives them."""
    names = {parameter: bare_name(name) for name, parameter in _bare(model).named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise ValueError("the optimizer holds a parameter that is not the model's")
            yield names[parameter], parameter


def make_states(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    """Let the optimizer make the states it lacks, by a step at rate 0 with gradients of 0."""
    stateless = {parameter for parameter in parameters if parameter not in optimizer.state}
    if not stateless:
        return
    everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in everything]
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in everything:
        parameter.grad = torch.zeros_like(parameter) if parameter in stateless else None
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    try:
        optimizer.step()
    finally:
        for parameter, gradient in zip(everything, gradients, strict=True):
            parameter.grad = gradient
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
