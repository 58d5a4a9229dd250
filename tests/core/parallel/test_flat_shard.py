"""Stretches of tensors as boxes: each element once, and read back into any other stretches."""

from math import prod
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from core.parallel.flat_shard import FlatShard, LoadPlanner, SavePlanner, boxes
from core.parallel.weights import CheckedReader, HostWriter, read_metadata

SHAPES = [(), (1,), (7,), (3, 4), (4, 1), (1, 5), (2, 3, 4), (3, 1, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boxes_are_the_stretch(shape: tuple[int, ...]) -> None:
    elements = torch.arange(prod(shape)).view(shape)
    for start in range(elements.numel() + 1):
        for stop in range(start, elements.numel() + 1):
            found = list(boxes(torch.Size(shape), start, stop))
            assert len(found) <= max(1, 2 * len(shape) - 1)
            inside = []
            for place, offsets, sizes in found:
                box = elements[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
                assert box.flatten().tolist() == list(range(place, place + prod(sizes)))
                inside += box.flatten().tolist()
            assert sorted(inside) == list(range(start, stop))


def test_stretches_are_read_into_others_and_into_whole_tensors(tmp_path: Path) -> None:
    tensors = {str(shape): torch.randn(shape) for shape in SHAPES}
    for name, tensor in tensors.items():
        for cut in range(tensor.numel() + 1):
            directory = tmp_path / f"{name} {cut}"
            # Two ranks' shares under two names, so that one process can write them; read into the other's places.
            first, second = tensor.flatten()[:cut], tensor.flatten()[cut:]
            shares = {"first": FlatShard(tensor.shape, 0, first), "second": FlatShard(tensor.shape, cut, second)}
            assert [shares["first"].local.numel(), shares["second"].local.numel()] == [cut, tensor.numel() - cut]
            whole = {"whole": FlatShard(tensor.shape, 0, tensor.flatten().clone())}
            save(whole, storage_writer=HostWriter(directory), planner=SavePlanner(), no_dist=True)  # type: ignore[arg-type]
            target = FlatShard(tensor.shape, cut, torch.zeros(tensor.numel() - cut))
            reader = CheckedReader(directory, read_metadata(directory))
            load({"whole": target}, storage_reader=reader, planner=LoadPlanner(), no_dist=True)
            assert torch.equal(target.local, second)
            plain = torch.zeros(tensor.shape)
            reader = CheckedReader(directory, read_metadata(directory))
            load({"whole": plain}, storage_reader=reader, planner=LoadPlanner(), no_dist=True)
            assert torch.equal(plain, tensor)
