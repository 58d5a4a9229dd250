"""A lhotse Shar directory: shards of cuts, each with its audio in a tar beside it, read from front to back.

    train/cuts.000000.jsonl.gz  train/recording.000000.tar  train/cuts.000001.jsonl.gz ...

`python -m manifests.shar` makes one of a manifest. Other fields that a shard may have (features) are left alone.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.data.reading import BadSample

if TYPE_CHECKING:  # lhotse takes long to import
    from lhotse import MonoCut


@dataclass(frozen=True)
class Shard:
    """The cuts of one shard, and the tar with their audio in the same order."""

    cuts: Path
    audio: Path
    durations_s: np.ndarray  # (N,) float32

    def read(self) -> Iterator["MonoCut | BadSample"]:
        """Yield cuts with their audio, still encoded; last a BadSample named after the shard where it is damaged."""
        from lhotse.shar.readers.lazy import LazySharIterator

        num_read, problem = 0, ""
        try:
            for cut in LazySharIterator({"cuts": [str(self.cuts)], "recording": [str(self.audio)]}):
                yield cut
                num_read += 1
        except Exception as error:  # gzip, tarfile, json and lhotse each have their own for a damaged file
            problem = f": {type(error).__name__}: {error}"
        if problem or num_read < len(self.durations_s):
            reason = f"damaged: {num_read} of its {len(self.durations_s)} cuts can be read{problem}"
            yield BadSample(self.audio.name, reason, str(self.audio))


@dataclass(frozen=True)
class Shar:
    """The shards of a directory, and what is known of them without their audio."""

    directory: Path
    shards: list[Shard]

    @classmethod
    def open(cls, directory: Path) -> "Shar":
        """Read the metadata of every cut once. ValueError where files are missing or damaged."""
        paths = sorted(directory.glob("cuts.*.jsonl*"))
        if not paths:
            raise ValueError(
                f"data.train={directory}: no Shar directory (cuts.000000.jsonl.gz, recording.000000.tar ...); make one "
                "of a manifest: python -m manifests.shar MANIFEST OUTPUT_DIR"
            )
        return cls(directory, [Shard(path, _audio_of(path), _durations_s(path)) for path in paths])

    def __str__(self) -> str:
        return str(self.directory)

    @property
    def durations_s(self) -> np.ndarray:  # (N,) float32, in the order of the shards
        return np.concatenate([shard.durations_s for shard in self.shards])

    def cuts(self) -> Iterator["MonoCut"]:
        """Yield all cuts without their audio."""
        from lhotse.lazy import LazyManifestIterator

        for shard in self.shards:
            yield from LazyManifestIterator(str(shard.cuts))

    def spread(self, most: int) -> Iterator["MonoCut"]:
        """Yield at most so many cuts with their audio: the first ones of shards evenly spread."""
        places = np.linspace(0, len(self.shards) - 1, min(len(self.shards), most)).astype(int)
        for place in places:
            for number, item in enumerate(self.shards[place].read()):
                if number == most // len(places):
                    break
                if not isinstance(item, BadSample):  # training will come across it, and list it
                    yield item


def _audio_of(cuts: Path) -> Path:
    audio = cuts.with_name(f"recording.{cuts.name.split('.')[1]}.tar")
    if not audio.is_file():
        raise ValueError(f"{cuts}: its audio {audio.name} is missing; make the Shar directory again")
    return audio


def _durations_s(cuts: Path) -> np.ndarray:
    try:
        with gzip.open(cuts, "rt", encoding="utf-8") if cuts.suffix == ".gz" else cuts.open(encoding="utf-8") as file:
            return np.array([json.loads(line)["duration"] for line in file], np.float32)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{cuts}: damaged ({error!r}); make the Shar directory again") from None
