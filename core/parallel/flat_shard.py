"""A stretch of a tensor's elements in row-major order, as ZeRO deals them to ranks, in torch's distributed checkpoint.

DCP stores boxes. A stretch is cut into boxes: the rest of a row, whole rows, the beginning of a row, and so on inward.
So it can be read back into stretches of another length, into shards by rows, or into a whole tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Box = tuple[int, tuple[int, ...], tuple[int, ...]]  # its first element's place in the tensor, offsets, sizes


@dataclass(frozen=True)
class FlatShard:
    """The elements `start` to `start + len(local)` of a tensor of `shape`; `local` (n,) is a view, and may be empty."""

    shape: torch.Size
    start: int
    local: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.local.dtype

    @property
    def is_cuda(self) -> bool:
        return self.local.is_cuda

    def on_host(self) -> "FlatShard":
        """Copy to host memory; the copy of a GPU's is there once the GPU is synchronized."""
        return FlatShard(self.shape, self.start, self.local.detach().to("cpu", non_blocking=True, copy=True))

    def part(self, offsets: torch.Size | None) -> Tensor:
        """Return a view of the box that begins there."""
        place, _, sizes = next(box for box in self._boxes() if torch.Size(box[1]) == offsets)
        return self.local.narrow(0, place - self.start, prod(sizes)).view(sizes)

    def __create_write_items__(self, name: str, shard: Any) -> list[WriteItem]:  # DCP asks for it by this name
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for _, offsets, sizes in self._boxes()]

    def _boxes(self) -> Iterator[Box]:
        return boxes(self.shape, self.start, self.start + self.local.numel())


class SavePlanner(DefaultSavePlanner):
    """DCP's planner for saving, which finds the boxes of a FlatShard as well; names are not taken apart."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        value = self.state_dict[index.fqn]
        return value.part(index.offset) if isinstance(value, FlatShard) else super().lookup_object(index)


class LoadPlanner(DefaultLoadPlanner):
    """DCP's planner for loading, which finds the boxes of a FlatShard as well; names are not taken apart."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        """Keep the state dict as it comes: DCP's own makes None of what is no tensor."""
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        value = self.state_dict[index.fqn]
        return value.part(index.offset) if isinstance(value, FlatShard) else super().lookup_tensor(index)


def boxes(shape: torch.Size, start: int, stop: int) -> Iterator[Box]:
    """Return the boxes that elements `start` to `stop` of a tensor are made of, at most 2 x dimensions - 1."""
    if start == stop:
        return
    if not shape:
        yield start, (), ()
        return
    row_size = prod(shape[1:])
    first, last = -(-start // row_size), stop // row_size  # the whole rows
    if first < last:
        yield first * row_size, (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    pieces = [(start, stop)] if first > last else [(start, first * row_size), (last * row_size, stop)]
    for begin, end in pieces:
        row = begin // row_size
        for place, offsets, sizes in boxes(shape[1:], begin - row * row_size, end - row * row_size):
            yield row * row_size + place, (row, *offsets), (1, *sizes)
