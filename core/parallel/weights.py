"""Weights and optimizer states on disk, by torch's distributed checkpoint (DCP).

Written in the background while training goes on, by every rank its own share; read back at any number of ranks.
Only tensors are stored, under the names of `named_tensors`.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from core.background import in_background
from core.parallel.dcp_files import CheckedReader, HostWriter, first_failure, read_metadata
from core.parallel.flat_shard import FlatShard, LoadPlanner, SavePlanner
from core.parallel.names import model_tensors, optimizer_targets, restore_numbers, share_of_rank

NUM_NAMED = 5  # keys that an error names

Named = Mapping[str, Tensor | FlatShard]
Saved = Mapping[str, TensorStorageMetadata]  # what a checkpoint holds, by name

# DCP warns of what `group=None` asks for.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def save_weights(
    model: nn.Module, optimizer: Optimizer, directory: Path, *, group: dist.ProcessGroup | None
) -> Future[None]:
    """Copy this rank's share to host memory, and write it to `directory` in the background; done when it is on disk.

    All ranks of `group` (gloo; None for a process alone) call it together, and nothing else may use that group until
    the future is done. The future carries an OSError on all ranks when one of them cannot write.
    """
    return save_tensors(share_of_rank(model, optimizer, group=group), directory, group=group)


def load_weights(
    model: nn.Module,
    optimizer: Optimizer | None,
    directory: Path,
    *,
    group: dist.ProcessGroup | None,
    weights_only: bool = False,
) -> None:
    """Read what `save_weights` wrote, at this or another number of ranks, into model and optimizer, in place.

    ValueError, on all ranks alike, for a file that is refused and for keys, sizes or types that do not fit; no weight
    is changed then. `weights_only` leaves the optimizer alone and takes weights of another floating type.
    """
    tensors: dict[str, Tensor] = {}

    def targets(saved: Saved) -> Named:
        tensors.update(model_tensors(model))
        if not weights_only:
            assert optimizer is not None
            tensors.update(optimizer_targets(model, optimizer, saved=saved))
        return tensors

    load_tensors(targets, directory, group=group, weights_only=weights_only)
    if not weights_only:
        restore_numbers(model, cast(Optimizer, optimizer), tensors)


def save_tensors(share: Named, directory: Path, *, group: dist.ProcessGroup | None) -> Future[None]:
    """Save a share that is at hand, as `save_weights` does: whole tensors, DTensors and parts of tensors."""
    copied = {name: _on_host(value) for name, value in share.items()}
    if any(value.is_cuda for value in share.values()):
        torch.cuda.synchronize()  # non_blocking: into pinned memory at the speed of the bus; wait until all are there
    return in_background(lambda: _write(copied, directory, group=group), name="save-weights")


def load_tensors(
    targets: Callable[[Saved], Named], directory: Path, *, group: dist.ProcessGroup | None, weights_only: bool
) -> None:
    """Read in place into what `targets` gives for what is saved; errors are those of `load_weights`."""
    tensors: Named = {}
    problem = None
    try:
        metadata = read_metadata(directory)
        tensors = targets(cast(Saved, metadata.state_dict_metadata))
        _check_fit(tensors, metadata, directory=directory, weights_only=weights_only)
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem := next(filter(None, _gather(problem, group)), None):
        raise ValueError(problem)
    with first_failure():
        load(
            cast(dict[str, Any], tensors),
            storage_reader=CheckedReader(directory, metadata),
            planner=LoadPlanner(),
            process_group=group,
            no_dist=group is None,
        )


def _on_host(value: Tensor | FlatShard) -> Tensor | FlatShard:
    return value.on_host() if isinstance(value, FlatShard) else value.detach().to("cpu", non_blocking=True, copy=True)


def _write(tensors: Named, directory: Path, *, group: dist.ProcessGroup | None) -> None:
    with first_failure():
        save(
            cast(dict[str, Any], tensors),
            storage_writer=HostWriter(directory),
            planner=SavePlanner(),
            process_group=group,
            no_dist=group is None,
        )


def _check_fit(tensors: Named, metadata: Metadata, *, directory: Path, weights_only: bool) -> None:
    saved = metadata.state_dict_metadata
    if weights_only:
        saved = {name: entry for name, entry in saved.items() if name.startswith("model.")}
    problems = []
    if missing := tensors.keys() - saved.keys():
        problems.append(f"it lacks {_some(missing)}")
    if unexpected := saved.keys() - tensors.keys():
        problems.append(f"it has, and this run has not, {_some(unexpected)}")
    sizes, types = [], []
    for name in tensors.keys() & saved.keys():
        entry, tensor = cast(TensorStorageMetadata, saved[name]), tensors[name]
        if entry.size != tensor.shape:
            sizes.append(f"{name} {tuple(entry.size)} instead of {tuple(tensor.shape)}")
        elif entry.properties.dtype != tensor.dtype and not weights_only:
            types.append(f"{name} {entry.properties.dtype} instead of {tensor.dtype}")
    problems += [f"{what} differ: {_some(which)}" for what, which in (("sizes", sizes), ("types", types)) if which]
    if problems:
        raise ValueError(f"the checkpoint {directory} does not fit this run: {'; '.join(problems)}")


def _some(names: Iterable[str]) -> str:
    """Return the first few names and how many there are."""
    names = sorted(names)
    more = f" and {len(names) - NUM_NAMED} more ({len(names)} in all)" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


def _gather(item: Any, group: dist.ProcessGroup | None) -> list[Any]:
    if group is None:
        return [item]
    items: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(items, item, group=group)
    return items
