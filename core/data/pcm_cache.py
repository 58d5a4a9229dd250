"""The audio of a manifest as 16-bit samples in one memory-mapped file: a crop costs a copy, nothing is decoded.

    train.jsonl.pcm/samples.npy     the samples of all cuts, one after another, int16
                    offsets.npy     where each cut's begin, int64, one more than cuts
                    card.json       sample rate, the manifest's print

960 h at 16 kHz are 111 GB. Exact where the files have 16 bits, as those that `prepare` writes.
"""

import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.index import ManifestIndex
from core.rundir.whole_files import appears_whole, read_json, write_json

CARD, OFFSETS, SAMPLES = "card.json", "offsets.npy", "samples.npy"
_SCALE = 2**15


@dataclass(frozen=True)
class PcmCard:
    """What a cache holds."""

    sample_rate_hz: int
    manifest: str  # its checksum


class PcmCache:
    """`cache.read(row, start, num)` are samples of a cut of the manifest."""

    def __init__(self, directory: Path, card: PcmCard, samples: np.ndarray, offsets: np.ndarray) -> None:
        self.directory, self.card = directory, card
        self._samples, self._offsets = np.asarray(samples), np.asarray(offsets)  # a slice of a memmap object is slow

    @classmethod
    def open(cls, index: ManifestIndex) -> "PcmCache":
        """Open the cache beside a manifest; ValueError where it is missing, damaged, or of another manifest."""
        cache = cls._map(cache_path(index.manifest))
        if cache.card.manifest != manifest_checksum(index.manifest):
            raise ValueError(f"{cache.directory}: of another manifest than {index.manifest} is now; delete the folder")
        return cache

    @classmethod
    def _map(cls, directory: Path) -> "PcmCache":
        if not (directory / CARD).is_file():
            raise ValueError(f"{directory}: no cache of samples; make it by prepare.pcm_cache=true, or do without")
        try:
            card = PcmCard(**read_json(directory / CARD))
            samples = np.load(directory / SAMPLES, mmap_mode="r", allow_pickle=False)
            offsets = np.load(directory / OFFSETS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, TypeError) as error:
            raise ValueError(f"{directory}: damaged ({error!r}); delete the folder and prepare again") from None
        if samples.dtype != np.int16 or len(offsets) == 0 or offsets[-1] != len(samples):
            raise ValueError(f"{directory}: damaged (sizes disagree); delete the folder and prepare again")
        return cls(directory, card, samples, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def num_samples(self, row: int) -> int:
        """Return the samples of a cut; 0 for one that could not be read."""
        return int(self._offsets[row + 1] - self._offsets[row])

    def read(self, row: int, *, start: int = 0, num: int | None = None) -> np.ndarray:
        """Return `num` samples (all) of a cut from `start` on, as many as there are: (S,) float32, full scale 1."""
        begin, end = int(self._offsets[row]) + start, int(self._offsets[row + 1])
        stop = end if num is None else min(end, begin + num)
        samples = self._samples[begin:stop].astype(np.float32)
        samples *= np.float32(1 / _SCALE)
        return samples

    def __reduce__(self) -> tuple[Any, ...]:
        return PcmCache._map, (self.directory,)  # another process maps the files itself


def cache_path(manifest: Path) -> Path:
    return manifest.with_name(manifest.name + ".pcm")


def manifest_checksum(manifest: Path) -> str:
    """Hash all that a manifest says, at a gigabyte a second."""
    checksum = 0
    with manifest.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}-{manifest.stat().st_size}"


def write_cache(manifest: Path, clips: Iterable[np.ndarray], *, sample_rate_hz: int) -> PcmCache:
    """Write a cache of `clips`, the samples (S,) float of the manifest's cuts in its order; empty for none.

    Clip by clip, so that memory does not grow; there whole or not at all.
    """
    directory = cache_path(manifest)
    directory.mkdir(exist_ok=True)
    (directory / CARD).unlink(missing_ok=True)
    ends = [0]
    with appears_whole(directory / SAMPLES) as file:
        _write_header(file, num_samples=0)
        header_bytes = file.tell()
        for clip in clips:
            whole = np.clip(np.rint(np.asarray(clip) * _SCALE), -_SCALE, _SCALE - 1)
            file.write(whole.astype("<i2").tobytes())
            ends.append(ends[-1] + len(clip))
        file.seek(0)
        _write_header(file, num_samples=ends[-1])
        assert file.tell() == header_bytes, "numpy reserves room for the number of samples to grow in place"
    with appears_whole(directory / OFFSETS) as file:
        np.save(file, np.array(ends, np.int64))
    write_json(directory / CARD, asdict(PcmCard(sample_rate_hz, manifest_checksum(manifest))))
    return PcmCache._map(directory)


def _write_header(file: Any, *, num_samples: int) -> None:
    header = {"descr": "<i2", "fortran_order": False, "shape": (num_samples,)}
    np.lib.format.write_array_header_1_0(file, header)
