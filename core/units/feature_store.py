"""Features of many clips on disk: fp16 shards that k-means reads through a memory map.

    train-00000-of-00008.npy             frames x dim, fp16, the clips one after another
    train-00000-of-00008.lengths.npy     frames of each clip

A shard is written while its clips come, so that its size does not matter, and is there whole or not at all.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from core.rundir.whole_files import appears_whole, remove_unfinished

_LARGEST = float(np.finfo(np.float16).max)  # 65,504


def write_features(path: Path, clips: Iterable[np.ndarray], *, dim: int) -> int:
    """Write the features of clips, each (T, dim), as the shard `path` (.npy); return the number of frames.

    Nobody else may be writing this shard: what killed processes left of it is removed. ValueError for a value that is
    too large for fp16.
    """
    for part in (path, _lengths_path(path)):
        remove_unfinished(part)
    lengths: list[int] = []
    with appears_whole(path) as file:
        _write_header(file, num_frames=0, dim=dim)
        header_bytes = file.tell()
        for clip in clips:
            peak = float(np.abs(clip).max(initial=0.0))
            if peak > _LARGEST:
                raise ValueError(
                    f"{path}: a feature of {peak:g} does not fit in fp16, which ends at {_LARGEST:g}: the model has "
                    "diverged, or this layer is not for clustering; name another one by features.layer"
                )
            file.write(np.ascontiguousarray(clip, dtype=np.float16).tobytes())
            lengths.append(len(clip))
        file.seek(0)
        _write_header(file, num_frames=sum(lengths), dim=dim)
        assert file.tell() == header_bytes, "numpy reserves room for the number of frames to grow in place"
        with appears_whole(_lengths_path(path)) as other:
            np.save(other, np.array(lengths, np.int64))
    return sum(lengths)


def is_whole(path: Path) -> bool:
    """Return whether a shard is there with all its frames; one cut short by a full disk or a copy is not."""
    try:
        FrameShards([path])
    except ValueError:
        return False
    return True


def remove_features(path: Path) -> None:
    for part in (path, _lengths_path(path)):
        part.unlink(missing_ok=True)


class FrameShards:
    """The frames of shards, one after another, as one array on disk."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Map the shards. ValueError naming one that is missing, damaged, or of another width than the first."""
        self._shards = [_open(path) for path in paths]
        widths = {shard.shape[1] for shard in self._shards}
        if len(widths) != 1:
            raise ValueError(f"shards of different widths {sorted(widths)}: {paths[0]} ...; give those of one layer")
        self.dim: int = widths.pop()
        self._paths = list(paths)
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return frames start ... stop - 1, (stop - start, dim) fp16."""
        parts = []
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True):
            first = end - len(shard)
            if start < end and stop > first:
                parts.append(shard[max(0, start - first) : stop - first])
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float16)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return frames by ascending number, (len(rows), dim) fp16."""
        shard_of = np.searchsorted(self._ends, rows, side="right")
        parts = [
            shard[rows[shard_of == number] - (end - len(shard))]
            for number, (shard, end) in enumerate(zip(self._shards, self._ends.tolist(), strict=True))
        ]
        return np.concatenate(parts)

    def clips(self) -> Iterator[np.ndarray]:
        """Yield the features of each clip in turn, (T, dim) fp16."""
        for shard, path in zip(self._shards, self._paths, strict=True):
            yield from np.split(shard, np.cumsum(np.load(_lengths_path(path)))[:-1])


def _open(path: Path) -> np.ndarray:
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
        lengths = np.load(_lengths_path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: no whole shard of features ({error}); make it again") from None
    if frames.ndim != 2 or frames.dtype != np.float16 or lengths.sum() != len(frames):
        raise ValueError(f"{path}: not a shard of features, or of other clips than its lengths; make it again")
    return frames


def _lengths_path(path: Path) -> Path:
    return path.with_suffix(".lengths.npy")


def _write_header(file: IO[bytes], *, num_frames: int, dim: int) -> None:
    header = {"descr": "<f2", "fortran_order": False, "shape": (num_frames, dim)}
    np.lib.format.write_array_header_1_0(file, header)
