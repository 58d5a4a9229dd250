"""The index of a manifest: what planning needs of every cut, and where the cut is in the file.

A manifest is a lhotse cuts JSONL (one MonoCut a line, UTF-8, not compressed). Beside `train.jsonl` lies
`train.jsonl.index.npy`: one row of 24 bytes a cut, in manifest order, memory-mapped by every reader. So 10 M cuts
cost 240 MB of page cache shared by all processes of a node, and a cut is read by one seek.

    write_manifest(cuts, Path("data/train.jsonl"))
    index = ManifestIndex.open(Path("data/train.jsonl"))
    index.durations_s[7], index.read(7)
"""

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from lhotse import MonoCut
from lhotse.serialization import deserialize_item

from core.rundir.whole_files import appears_whole

ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("num_bytes", "<i4"),  # with the newline
        ("duration_s", "<f4"),
        ("num_chars", "<i4"),  # of the text as the manifest has it, before any normalizer
        ("sample_rate_hz", "<i4"),
    ]
)
SUFFIX = ".index.npy"
_BLOCK_ROWS = 65_536


class ManifestIndex:
    """The rows of one manifest, memory-mapped; safe to use after a fork, from threads, and to pickle."""

    def __init__(self, manifest: Path, rows: np.ndarray) -> None:
        self.manifest = manifest
        self._rows = rows
        self._file: int | None = None

    @classmethod
    def open(cls, manifest: Path) -> "ManifestIndex":
        """Map the index of `manifest`; build it first where there is none.

        Raises ValueError if the manifest is missing or is not the file that the index was made from.
        """
        manifest = manifest.resolve()
        if not manifest.is_file():
            raise ValueError(f"{manifest}: no such manifest; prepare it with `python -m manifests.NAME`")
        path = index_path(manifest)
        if path.exists():
            rows = _map_rows(path)
        elif os.access(manifest.parent, os.W_OK):
            rows = _map_rows(build_index(manifest))
        else:
            warnings.warn(f"{manifest}: no index, and none can be written: indexing it for this process", stacklevel=2)
            rows = _rows_in_scratch(manifest)
        indexed_bytes = int(rows[-1]["offset"]) + int(rows[-1]["num_bytes"]) if len(rows) else 0
        if indexed_bytes != manifest.stat().st_size:
            raise ValueError(_stale(manifest))
        return cls(manifest, rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def durations_s(self) -> np.ndarray:  # (N,) float32
        return self._rows["duration_s"]

    @property
    def num_chars(self) -> np.ndarray:  # (N,) int32
        return self._rows["num_chars"]

    @property
    def sample_rates_hz(self) -> np.ndarray:  # (N,) int32
        return self._rows["sample_rate_hz"]

    def read(self, row: int) -> MonoCut:
        """Cut `row` of the manifest, its audio paths absolute. Raises ValueError if the manifest was changed."""
        return deserialize_item(self.record(row))

    def record(self, row: int) -> dict[str, Any]:
        """Return a cut as plain JSON: ten times as fast as an object of lhotse."""
        if self._file is None:
            self._file = os.open(self.manifest, os.O_RDONLY | os.O_CLOEXEC)
        entry = self._rows[row]
        # pread moves no file position, so processes that share the descriptor after a fork do not disturb each other
        line = os.pread(self._file, int(entry["num_bytes"]), int(entry["offset"]))
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise ValueError(_stale(self.manifest)) from error
        if np.float32(record["duration"]) != entry["duration_s"]:
            raise ValueError(_stale(self.manifest))
        for source in _file_sources(record):
            source["source"] = str(self.manifest.parent / source["source"])
        return record

    def __str__(self) -> str:
        return str(self.manifest)

    def cuts(self) -> Iterator[MonoCut]:
        """Yield all cuts in the manifest's order."""
        return (self.read(row) for row in range(len(self)))

    def spread(self, most: int) -> Iterator[MonoCut]:
        """Yield at most so many cuts, evenly spread."""
        return (self.read(int(row)) for row in np.linspace(0, len(self) - 1, min(len(self), most)))

    def __reduce__(self) -> tuple[Any, ...]:
        # a spawned process maps the file again: a pickled memory map would be a copy of all rows
        return ManifestIndex.open, (self.manifest,)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def index_path(manifest: Path) -> Path:
    return manifest.with_name(manifest.name + SUFFIX)


def build_index(manifest: Path) -> Path:
    """Index `manifest` in one streaming pass and put the index beside it whole; return where it is."""
    with appears_whole(index_path(manifest)) as file:
        _write_rows(manifest, file)
    return index_path(manifest)


def write_manifest(cuts: Iterable[MonoCut], path: Path) -> int:
    """Write cuts as a manifest with its index, both whole or not at all; return the number of cuts.

    Audio below the manifest's folder is named relative to it, so the folder can be moved; other audio absolutely.
    """
    return write_records((cut.to_dict() for cut in cuts), path)


def write_records(records: Iterable[dict[str, Any]], path: Path) -> int:
    """Write a manifest of cuts that are plain JSON already."""
    folder = path.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    num_cuts = 0
    with appears_whole(path) as file:
        for record in records:
            for source in _file_sources(record):
                audio = Path(source["source"]).absolute()
                source["source"] = str(audio.relative_to(folder) if audio.is_relative_to(folder) else audio)
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            num_cuts += 1
        index_path(path).unlink(missing_ok=True)  # an index of the old manifest must not outlive it
    build_index(path)
    return num_cuts


def _rows_of(manifest: Path) -> Iterator[tuple[int, int, float, int, int]]:
    """Yield an index row for each line of the manifest, in ROW's order."""
    offset = 0
    with manifest.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                num_chars = sum(len(supervision.get("text") or "") for supervision in record.get("supervisions", ()))
                sample_rate_hz = int(record["recording"]["sampling_rate"])
                yield offset, len(line), float(record["duration"]), num_chars, sample_rate_hz
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{manifest}:{number}: no cut with a recording ({error!r}): {line[:80]!r}") from None
            offset += len(line)


def _write_rows(manifest: Path, file: IO[bytes]) -> None:
    """Write a .npy of all rows to `file`, holding no more than one block of them."""
    _write_header(file, num_rows=0)
    header_bytes = file.tell()
    block: list[tuple[int, int, float, int, int]] = []
    num_rows = 0
    for row in _rows_of(manifest):
        block.append(row)
        num_rows += 1
        if len(block) == _BLOCK_ROWS:
            file.write(np.array(block, dtype=ROW).tobytes())
            block.clear()
    file.write(np.array(block, dtype=ROW).tobytes())
    file.seek(0)
    _write_header(file, num_rows=num_rows)
    assert file.tell() == header_bytes, "numpy reserves room for the number of rows to grow in place"
    file.flush()


def _write_header(file: IO[bytes], *, num_rows: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (num_rows,)}
    np.lib.format.write_array_header_1_0(file, header)


def _map_rows(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it and it is built again") from None
    if rows.dtype != ROW or rows.ndim != 1:
        raise ValueError(f"{path}: not an index of this version; delete it and it is built again")
    return rows


def _rows_in_scratch(manifest: Path) -> np.ndarray:
    """Keep rows in an unnamed file of the temporary directory, which goes when the last process closes it."""
    with tempfile.TemporaryFile() as file:
        _write_rows(manifest, file)
        file.seek(0)
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        return np.memmap(file, dtype=ROW, mode="r", offset=file.tell(), shape=shape) if shape[0] else np.empty(0, ROW)


def _file_sources(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [source for source in record["recording"]["sources"] if source["type"] == "file"]


def _stale(manifest: Path) -> str:
    return f"{manifest}: changed since it was indexed; delete {index_path(manifest).name} and it is built again"
