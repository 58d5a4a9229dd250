"""Cluster labels of a manifest on disk: int16, memory-mapped, with a card that says what they are.

    labels/train/labels.npy     the labels of all cuts, one after another, int16
                 offsets.npy    where each cut's begin, int64, one more than cuts: cut r has offsets[r]:offsets[r + 1]
                 card.json      features, layer, clusters, rate, hashes of codebook and checkpoint, the manifest's print

Written in shards of the manifest's rows, by any number of processes in any order; a shard is there whole or not at all,
so an interrupted preparation goes on with what is missing. 960 h at 50 Hz are 346 MB, 60,000 h are 21.6 GB.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from core.data.index import ManifestIndex
from core.rundir.whole_files import appears_whole, read_json, remove_unfinished, write_json

CARD, LABELS, OFFSETS, SHARDS = "card.json", "labels.npy", "offsets.npy", "shards"
_LARGEST = np.iinfo(np.int16).max
_LEADING_ID = re.compile(rb'\{"id": ?"([ !#-\[\]-~]*)"')  # plain ASCII, nothing escaped


@dataclass(frozen=True, kw_only=True)
class LabelCard:
    """The facts about labels. `layer`, `checkpoint`: None for MFCC. `manifest`: see `manifest_fingerprint`."""

    features: str  # "mfcc:torchaudio", "mfcc:kaldi", "hubert", "hubert:smooth5"
    layer: int | None
    num_clusters: int
    rate_hz: float
    codebook: str  # hash of the centers
    checkpoint: str | None  # hash of the weights that made the features
    manifest: str

    def __post_init__(self) -> None:
        if not 1 <= self.num_clusters <= _LARGEST + 1:
            raise ValueError(f"num_clusters={self.num_clusters} must be between 1 and {_LARGEST + 1}: labels are int16")

    def check(self, where: Path, **expected: Any) -> None:
        """Raise ValueError naming every fact that is not as expected."""
        own = asdict(self)
        wrong = [
            f"{key}={own[key]!r} instead of {value!r}"
            for key, value in expected.items()
            if not (is_fingerprint_of(own[key], value) if key == "manifest" else own[key] == value)
        ]
        if wrong:
            raise ValueError(f"{where}: these labels are others than the config asks for: {', '.join(wrong)}")


class LabelStore:
    """`store[row]` are the labels of a cut of the manifest, int16, empty where it could not be labelled."""

    def __init__(self, directory: Path, card: LabelCard, labels: np.ndarray, offsets: np.ndarray) -> None:
        self.directory, self.card = directory, card
        self._labels, self._offsets = labels, offsets

    @classmethod
    def open(cls, directory: Path, **expected: Any) -> "LabelStore":
        """Map the labels; ValueError where they are missing or damaged, or contradict `expected` (fields of the card).

        LabelStore.open(directory, num_clusters=100, manifest=manifest_fingerprint(index))
        """
        if not (directory / CARD).is_file():
            raise ValueError(f"{directory}: no labels ({CARD} is missing); make them with the recipe's prepare")
        try:
            content = read_json(directory / CARD)
            card = LabelCard(**{field.name: content[field.name] for field in fields(LabelCard)})
            labels = np.load(directory / LABELS, mmap_mode="r", allow_pickle=False)
            offsets = np.load(directory / OFFSETS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise ValueError(f"{directory}: damaged labels ({error!r}); delete the folder and prepare again") from None
        if labels.dtype != np.int16 or len(offsets) == 0 or offsets[-1] != len(labels):
            raise ValueError(f"{directory}: damaged labels (sizes disagree); delete the folder and prepare again")
        card.check(directory, **expected)
        return cls(directory, card, labels, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self._labels[self._offsets[row] : self._offsets[row + 1]]

    def counts(self) -> np.ndarray:
        """Return how often each cluster occurs, (N,) int64, read in blocks."""
        total = np.zeros(self.card.num_clusters, np.int64)
        for start in range(0, len(self._labels), 1 << 24):
            total += np.bincount(self._labels[start : start + (1 << 24)], minlength=len(total))
        return total

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelStore.open, (self.directory,)  # another process maps the files itself


def manifest_fingerprint(index: ManifestIndex) -> str:
    """Hash the lengths and the ids of a manifest's cuts, in order, by which labels know whose they are."""
    lengths, ids = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for start in range(0, len(index), 1 << 20):
        lengths.update(np.ascontiguousarray(index.durations_s[start : start + (1 << 20)]).tobytes())
    with index.manifest.open("rb") as file:
        for line in file:
            # The id comes first where lhotse wrote the line: nine times as fast as to parse the whole of it.
            plain = _LEADING_ID.match(line)
            ids.update((plain[1] if plain else str(json.loads(line)["id"]).encode()) + b"\n")
    return f"{lengths.hexdigest()}-{ids.hexdigest()}"


def is_fingerprint_of(known: str, wanted: str) -> bool:
    """Return whether labels with `known` are those of a manifest; fingerprints from before there were ids have none."""
    return known in (wanted, wanted.partition("-")[0])


def _header(dtype: str, length: int) -> dict[str, object]:
    return {"descr": dtype, "fortran_order": False, "shape": (length,)}


def shard_rows(num_rows: int, *, shard: int, num_shards: int) -> range:
    """Return rows of shard 0 ... num_shards - 1, as the predecessor: round(n r / R) to round(n (r + 1) / R)."""
    return range(round(num_rows / num_shards * shard), round(num_rows / num_shards * (shard + 1)))


class LabelShards:
    """The parts of a store that is being made."""

    def __init__(self, directory: Path, card: LabelCard, *, num_rows: int, num_shards: int) -> None:
        self.directory, self.card = directory, card
        self.num_rows, self.num_shards = num_rows, num_shards

    def begin(self) -> None:
        """Make the folder, or go on with what is in it. ValueError where that are shards of other labels.

        Only one process may call it, like `merge` and `remove`.
        """
        plan = {**asdict(self.card), "num_rows": self.num_rows, "num_shards": self.num_shards}
        folder = self.directory / SHARDS
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CARD).is_file():
            if read_json(folder / CARD) != plan:
                raise ValueError(f"{folder}: shards of other labels; delete the folder to make these instead")
        else:
            write_json(folder / CARD, plan)

    def missing(self) -> list[int]:
        """Return the shards that are not there, or not whole."""
        return [shard for shard in range(self.num_shards) if not self.is_whole(shard)]

    def is_whole(self, shard: int) -> bool:
        return self._read(shard) is not None

    def rows(self, shard: int) -> range:
        return shard_rows(self.num_rows, shard=shard, num_shards=self.num_shards)

    def write(self, shard: int, labels: Iterable[np.ndarray]) -> None:
        """Write the labels of `rows(shard)`, in their order, an empty array for a cut without. ValueError where they
        differ in number or range. Nobody else may be writing this shard.
        """
        remove_unfinished(self._path(shard))
        parts = [np.asarray(one) for one in labels]
        if len(parts) != len(self.rows(shard)):
            raise ValueError(f"shard {shard} has labels of {len(parts)} cuts instead of {len(self.rows(shard))}")
        joined = np.concatenate([np.zeros(0, np.int64), *parts])
        if len(joined) and not (joined.min() >= 0 and joined.max() < self.card.num_clusters):
            raise ValueError(f"shard {shard} has labels outside 0 ... {self.card.num_clusters - 1}")
        buffer = io.BytesIO()
        np.savez(buffer, labels=joined.astype(np.int16), lengths=np.array([len(one) for one in parts], np.int64))
        with appears_whole(self._path(shard)) as file:
            file.write(buffer.getbuffer())

    def merge(self) -> LabelStore:
        """Join all shards in one store, a shard in memory at a time; then they are deleted.

        ValueError while some are missing.
        """
        if missing := self.missing():
            raise ValueError(f"{self.directory}: shards {missing} of {self.num_shards} are missing; prepare them first")
        for name in (LABELS, OFFSETS):
            remove_unfinished(self.directory / name)
        num_labels = 0
        with appears_whole(self.directory / OFFSETS) as file:
            np.lib.format.write_array_header_1_0(file, _header("<i8", self.num_rows + 1))
            file.write(np.zeros(1, "<i8").tobytes())
            for shard in range(self.num_shards):
                ends = num_labels + np.cumsum(self._whole(shard)["lengths"])
                file.write(ends.astype("<i8").tobytes())
                num_labels = int(ends[-1]) if len(ends) else num_labels
        with appears_whole(self.directory / LABELS) as file:
            np.lib.format.write_array_header_1_0(file, _header("<i2", num_labels))
            for shard in range(self.num_shards):
                file.write(self._whole(shard)["labels"].tobytes())
        write_json(self.directory / CARD, asdict(self.card))
        self.remove()
        return LabelStore.open(self.directory)

    def remove(self) -> None:
        """Delete the shards, once there is a store; what is not ours stays."""
        folder = self.directory / SHARDS
        for path in folder.glob(f"*-of-{self.num_shards:05d}.npz*"):  # also what killed processes left
            path.unlink()
        (folder / CARD).unlink(missing_ok=True)
        with suppress(OSError):  # a person's file is in it
            folder.rmdir()

    def _path(self, shard: int) -> Path:
        return self.directory / SHARDS / f"{shard:05d}-of-{self.num_shards:05d}.npz"

    def _whole(self, shard: int) -> dict[str, np.ndarray]:
        found = self._read(shard)
        assert found is not None
        return found

    def _read(self, shard: int) -> dict[str, np.ndarray] | None:
        """Read a shard; None where it is missing, cut short or damaged: the archive's checksums tell."""
        try:
            with np.load(self._path(shard), allow_pickle=False) as archive:
                found = {"labels": archive["labels"], "lengths": archive["lengths"]}
        except Exception:  # zipfile, zlib and numpy each have their own
            return None
        fits = len(found["lengths"]) == len(self.rows(shard)) and found["lengths"].sum() == len(found["labels"])
        return found if fits else None


def write_store(directory: Path, card: LabelCard, labels: Sequence[np.ndarray]) -> LabelStore:
    shards = LabelShards(directory, card, num_rows=len(labels), num_shards=1)
    shards.begin()
    shards.write(0, labels)
    return shards.merge()
