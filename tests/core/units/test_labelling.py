"""Labelling a large corpus: how it is cut, and that memory does not grow with it."""

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.data.index import ROW, ManifestIndex, index_path
from core.distributed import init
from core.units.kmeans import KMeansConfig
from core.units.label_store import LabelStore
from core.units.labelling import Labelling, LabellingConfig

CLIP_S = 12.0


@dataclass(frozen=True)
class Coarse:
    """A frame a second."""

    name = "coarse"
    layer = None
    checkpoint = None
    rate_hz = 1.0
    dim = 1

    def __call__(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("there is no audio")


def index_of(folder: Path, *, hours: float) -> ManifestIndex:
    """Clips of 12 s that nobody can read: the manifest has no more than their ids."""
    num_clips = round(3600 * hours / CLIP_S)
    folder.mkdir()
    lines = [f'{{"id": "{number:08d}"}}\n' for number in range(num_clips)]
    (folder / "speech.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = np.zeros(num_clips, ROW)
    rows["offset"], rows["num_bytes"] = np.arange(num_clips) * len(lines[0]), len(lines[0])
    rows["duration_s"], rows["sample_rate_hz"] = CLIP_S, 16000
    np.save(index_path(folder / "speech.jsonl"), rows)
    return ManifestIndex.open(folder / "speech.jsonl")


def frames_of(row: int) -> Tensor:
    return (torch.arange(int(CLIP_S)) + row).remainder(5)[:, None].float()


def extract_(features: Any, index: ManifestIndex, rows: Sequence[int], **values: Any) -> Iterator[tuple[int, Tensor]]:
    for row in rows:
        yield row, frames_of(row)


def labelling(folder: Path, index: ManifestIndex, **values: Any) -> Labelling:
    kmeans = KMeansConfig(num_clusters=5, init_frames=500, max_iterations=3)
    return Labelling(
        LabellingConfig(kmeans=kmeans, **values),
        Coarse(),
        {"speech": index},
        fit_on=["speech"],
        directory=folder,
        seed=0,
        ranks=init(device="cpu"),
        stops=lambda seconds: False,
        note_bad=lambda bad: None,
    )


def peak_bytes(folder: Path, *, hours: float) -> int:
    """Of planning, features, k-means, labels and their store, by Python and numpy."""
    index = index_of(folder, hours=hours)
    work = labelling(folder / "run", index, shard_hours=2.0, fit_share=0.1)
    tracemalloc.start()
    codebook = work.codebook()
    assert codebook is not None and work.labels(codebook)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.units.labelling.extract", extract_)
    peak_bytes(tmp_path / "warm", hours=2)
    small, large = peak_bytes(tmp_path / "small", hours=10), peak_bytes(tmp_path / "large", hours=100)
    more_clips = round(3600 * 90 / CLIP_S)
    assert large - small < 6 * more_clips, "less than a number for each clip: what there is for each shard"
    store = LabelStore.open(tmp_path / "large" / "run" / "labels" / "speech")
    assert len(store) == round(3600 * 100 / CLIP_S)
    assert len({tuple(store[row]) for row in range(len(store))}) == 5
    for row in (0, 17, len(store) - 1):
        same_phase = store[row % 5]
        assert np.array_equal(store[row], same_phase)


def test_shards_are_of_so_many_hours(tmp_path: Path) -> None:
    index = index_of(tmp_path / "speech", hours=30)
    kmeans = KMeansConfig(num_clusters=5)
    assert LabellingConfig(kmeans=kmeans).shards(index) == 8  # of 4 h, the last not full
    assert LabellingConfig(kmeans=kmeans, shard_hours=0.5).shards(index) == 60
    assert LabellingConfig(kmeans=kmeans, shard_hours=0.5).shards(index, share=0.01) == 1
    assert LabellingConfig(kmeans=kmeans, num_shards=3).shards(index) == 3


def test_a_share_of_the_clips_is_clustered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(
        features: Any, index: ManifestIndex, rows: Sequence[int], **values: Any
    ) -> Iterator[tuple[int, Tensor]]:
        seen.extend(rows)
        return extract_(features, index, rows)

    monkeypatch.setattr("core.units.labelling.extract", counted)
    index = index_of(tmp_path / "speech", hours=5)
    assert labelling(tmp_path / "run", index, num_shards=7, fit_share=0.2).codebook() is not None
    assert len(set(seen)) == len(seen) and len(seen) == pytest.approx(0.2 * len(index), rel=0.15)
    assert min(seen) < 30 and max(seen) > len(index) - 30, "of the whole manifest"
