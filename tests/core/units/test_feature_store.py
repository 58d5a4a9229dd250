"""Feature shards: what is written is read, whole or not at all, across shards."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from core.units.feature_store import FrameShards, is_whole, write_features


def clips(seed: int, lengths: list[int], *, dim: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, dim)).astype(np.float16) for length in lengths]


def shards(folder: Path) -> tuple[list[Path], list[np.ndarray]]:
    first, second = clips(0, [4, 0, 3]), clips(1, [6, 2])
    paths = [folder / "a.npy", folder / "b.npy"]
    assert write_features(paths[0], first, dim=5) == 7
    assert write_features(paths[1], iter(second), dim=5) == 8
    return paths, first + second


def test_frames_and_clips_are_read_back_across_shards(tmp_path: Path) -> None:
    paths, written = shards(tmp_path)
    frames, joined = FrameShards(paths), np.concatenate(written)
    assert (len(frames), frames.dim) == (15, 5)
    for start, stop in [(0, 15), (0, 7), (5, 9), (7, 15), (14, 99), (15, 20)]:
        assert np.array_equal(frames.read(start, stop), joined[start:stop])
    rows = np.array([0, 3, 6, 7, 7, 14])
    assert np.array_equal(frames.take(rows), joined[rows])
    assert [clip.tolist() for clip in frames.clips()] == [clip.tolist() for clip in written]


def test_a_shard_that_is_interrupted_is_not_there(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield clips(0, [3])[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / "a.npy", broken(), dim=5)
    assert not is_whole(tmp_path / "a.npy")
    assert [path for path in tmp_path.iterdir() if path.suffix == ".npy"] == []


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    paths, _ = shards(tmp_path)
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-3])
    assert is_whole(paths[0]) and not is_whole(paths[1])
    with pytest.raises(ValueError, match=r"b\.npy: no whole shard"):
        FrameShards(paths)


def test_shards_of_two_layers_are_not_mixed(tmp_path: Path) -> None:
    paths, _ = shards(tmp_path)
    write_features(tmp_path / "c.npy", clips(0, [3], dim=6), dim=6)
    with pytest.raises(ValueError, match="different widths"):
        FrameShards([*paths, tmp_path / "c.npy"])


def test_values_beyond_fp16_are_refused_and_leave_no_shard(tmp_path: Path) -> None:
    for peak in (65504.0, -65504.0):
        write_features(tmp_path / "a.npy", [np.full((2, 3), peak, np.float32)], dim=3)
        assert FrameShards([tmp_path / "a.npy"]).read(0, 2).tolist() == [[peak] * 3] * 2
    with pytest.raises(ValueError, match=r"b\.npy: a feature of 70000 does not fit in fp16.*name another one"):
        write_features(tmp_path / "b.npy", [np.zeros((1, 3)), np.array([[0.0, -7e4, 1.0]])], dim=3)
    assert not list(tmp_path.glob("*b.*"))
