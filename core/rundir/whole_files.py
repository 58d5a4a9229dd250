"""Files that a reader sees whole or not at all, JSONL files that grow by whole lines, and locks between writers.

Standard library only.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]


def now() -> str:
    """Return the time in UTC as records tell it: ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def fsync_directory(directory: Path) -> None:
    """Make a rename or a new file in `directory` survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def appears_whole(path: Path, *, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the name `path` when the block ends well, and is removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of `path`. Only while no other process is writing it."""
    for temporary in path.parent.glob(f".{path.name}.*-*"):
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str) -> None:
    """Write a text file, for its owner alone, so that a reader sees all of it or none."""
    with appears_whole(path, mode=0o600) as file:
        file.write(content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document whole. NaN is refused: it is not JSON."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def locked(path: Path, *, waits: bool = True) -> Iterator[bool]:
    """Hold a lock file against all processes that share it, on any node, while the context lasts.

    Yields whether it is held: False where another process has it and `waits` is not set.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            is_held = True
        except BlockingIOError:
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON object as one line."""
    append_line(path, json.dumps(record, allow_nan=False))


def append_line(path: Path, line: str) -> None:
    """Append a line in one write, so that two writers cannot mix their lines.

    A last line torn by a kill or a full disk is ended first, so that it costs no record but its own.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        before = "\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else ""
        os.write(descriptor, f"{before}{line}\n".encode())
    finally:
        os.close(descriptor)


def read_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSONL file; a line torn by a kill is passed over. A missing file is empty."""
    if path.exists():
        with path.open("rb") as file:
            yield from parse_records(file)


def parse_records(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield the objects of the lines that hold one."""
    for line in lines:
        try:
            record = json.loads(line.decode("utf-8", errors="replace"))
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
