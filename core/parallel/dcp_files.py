"""How torch's distributed checkpoint (DCP) touches files: reads only what was checked, and says why a write failed."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from core.unpickling import check_tree, load_pickle

WRITE_BUFFER_BYTES = 1 << 20


def read_metadata(directory: Path) -> Metadata:
    """Read DCP's table of contents after checks that keep its reader from running code or leaving the directory."""
    files = {path.name for path in check_tree(directory)}
    metadata = load_pickle(directory / ".metadata")
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise ValueError(f"{directory / '.metadata'} is not the table of contents of a checkpoint")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{directory}: {name} is a {type(entry).__name__}, not a tensor")
    for name in {place.relative_path for place in metadata.storage_data.values()}:
        if name not in files:
            raise ValueError(f"{directory} lacks {name}")
    return metadata


class CheckedReader(FileSystemReader):
    """DCP's reader, which takes the table of contents that was checked instead of opening the file itself."""

    def __init__(self, directory: Path, metadata: Metadata) -> None:
        super().__init__(directory)
        self._metadata = metadata

    def read_metadata(self) -> Metadata:
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


class HostWriter(FileSystemWriter):
    """DCP's writer for tensors in host memory: its look-ahead would open a CUDA context on GPU 0 for every rank."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, per_thread_copy_ahead=0)
        self.fs = _FileSystem()


@contextmanager
def first_failure() -> Iterator[None]:
    """Raise the first of DCP's failures by rank, whose collection is no Exception."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        cause.add_note(f"on rank {rank}")
        raise cause from error


class _FileSystem(FileSystem):
    """A file system that lets the OSError of a full disk through, which torch's zip writer would hide."""

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[io.IOBase]:
        with _RawFile(path, mode) as raw:
            try:
                with io.BufferedWriter(raw, buffer_size=WRITE_BUFFER_BYTES) as stream:
                    yield stream
            except Exception as error:
                raise (raw.failure or error) from None


class _RawFile(io.FileIO):
    """A file that remembers why a write failed."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            raise
