"""The directory `checkpoints/` of a run: which checkpoints count, and how one is published, set aside and removed.

    step_00012000/              one checkpoint
        weights/                the engine's
        state.json              the loop's: position in the data, metrics so far
        hashes.json             sizes and hashes of the files above, step and token
        COMPLETE                step, token, hash of hashes.json; written last: without it the checkpoint does not count
        metrics.json            what it scored, for keep_best; may come later
    .step_00012000.tmp-7/       being written by the process that holds token 7
    .step_00004000.gone-7/      being removed by it
    step_00008000.damaged/      its hashes did not hold: set aside for a person to look at
    lineage.json                the step that each job went on from, by its token

A job that was cut off may publish when another has taken its run over. What it publishes beyond the step where the
later job went on does not count, whenever it appears. Nothing with another name is ever touched.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.rundir.files import LINEAGE
from core.rundir.whole_files import fsync_directory, read_json, write_json

COMPLETE = "COMPLETE"
HASHES = "hashes.json"
METRICS = "metrics.json"
STATE = "state.json"
WEIGHTS = "weights"

_STEP = re.compile(r"step_(\d{8,})")
_TEMPORARY = re.compile(r"\.step_\d{8,}\.(?:tmp|gone)-(\d+)")
_DAMAGED = re.compile(r"step_\d{8,}\.damaged(-\d+)?")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk; `is_complete`: the marker is there."""

    step: int
    directory: Path
    is_complete: bool

    def metrics(self) -> dict[str, float]:
        """Return what it scored; empty where that is not known."""
        try:
            metrics = read_json(self.directory / METRICS)
        except (OSError, ValueError):
            return {}
        return metrics if isinstance(metrics, dict) else {}

    def token(self) -> int | None:
        """Return the token of the job that wrote it; None where that cannot be read."""
        try:
            return int(read_json(self.directory / (COMPLETE if self.is_complete else HASHES))["token"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """List everything that is named like a checkpoint, by step, without what was overtaken."""
    lineage = read_lineage(directory)
    return [checkpoint for checkpoint in list_named(directory) if not _is_overtaken(checkpoint, lineage)]


def list_overtaken(directory: Path) -> list[Checkpoint]:
    """List what jobs published beyond the step where a later one had gone on, by step."""
    lineage = read_lineage(directory)
    return [checkpoint for checkpoint in list_named(directory) if _is_overtaken(checkpoint, lineage)]


def read_lineage(directory: Path) -> dict[int, int]:
    """Return the step that each job went on from, by the token of its lease; empty where no job followed another."""
    try:
        return {int(token): int(step) for token, step in read_json(directory / LINEAGE).items()}
    except (OSError, ValueError, AttributeError, TypeError):  # it appears whole: what is damaged was damaged by hand
        return {}


def is_overtaken(lineage: Mapping[int, int], *, token: int, step: int) -> bool:
    """Tell whether a job saved this step for nothing: a later one went on from before it."""
    return any(later > token and resumed < step for later, resumed in lineage.items())


def _is_overtaken(checkpoint: Checkpoint, lineage: Mapping[int, int]) -> bool:
    token = checkpoint.token() if lineage else None
    return token is not None and is_overtaken(lineage, token=token, step=checkpoint.step)


def go_on_from(directory: Path, *, step: int, token: int) -> None:
    """Note where the job with this token began, so that what older ones publish beyond it does not count.

    The first job follows nobody. To where a job goes back later does not matter: what lies between is its own.
    """
    lineage = read_lineage(directory)
    if token > 1 and token not in lineage:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / LINEAGE, {**lineage, token: step})


def list_named(directory: Path) -> list[Checkpoint]:
    """List what is named like a checkpoint, whether it counts or not, by step."""
    found = []
    for entry in _entries(directory):
        match = _STEP.fullmatch(entry.name)
        if match and entry.is_dir(follow_symlinks=False):
            path = Path(entry.path)
            found.append(Checkpoint(int(match[1]), path, is_complete=os.path.lexists(path / COMPLETE)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def list_complete(directory: Path) -> list[Checkpoint]:
    """List the checkpoints that count, by step."""
    return [checkpoint for checkpoint in list_checkpoints(directory) if checkpoint.is_complete]


def newest_complete(directory: Path) -> Checkpoint | None:
    """Return the newest checkpoint that counts; None where there is none. It opens no more files than it must."""
    lineage = read_lineage(directory)
    complete = (checkpoint for checkpoint in reversed(list_named(directory)) if checkpoint.is_complete)
    return next((checkpoint for checkpoint in complete if not _is_overtaken(checkpoint, lineage)), None)


def list_unmarked(directory: Path) -> list[Checkpoint]:
    """List those that this program published but was killed before it wrote the marker, by step."""
    return [c for c in list_checkpoints(directory) if not c.is_complete and os.path.lexists(c.directory / HASHES)]


def list_damaged(directory: Path) -> list[str]:
    """List the names of the checkpoints that were set aside."""
    return sorted(entry.name for entry in _entries(directory) if _DAMAGED.fullmatch(entry.name))


def final_directory(directory: Path, *, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return directory / f"step_{step:08d}"


def temporary_directory(directory: Path, *, step: int, token: int) -> Path:
    """Return where the holder of a token writes the checkpoint of a step."""
    return directory / f".step_{step:08d}.tmp-{token}"


def make_temporary(temporary: Path) -> None:
    """Make an empty temporary directory, and the directories above it."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()


def remove_temporary(directory: Path, *, token: int) -> list[str]:
    """Remove what dead processes left half written or half removed, of tokens up to ours; return its names."""
    removed = []
    for entry in _entries(directory):
        match = _TEMPORARY.fullmatch(entry.name)
        if match and int(match[1]) <= token and entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
            removed.append(entry.name)
    return removed


def publish(temporary: Path, final: Path, *, step: int, token: int, hashes: dict[str, Any]) -> None:
    """Make a written checkpoint count: hashes, everything on disk, its name, and the marker at the very end.

    One of that step that never got its marker, or that was overtaken, makes place; anything else there is an OSError.
    The marker goes into the directory that was written, whatever another job does with its name meanwhile.
    """
    write_json(temporary / HASHES, {"step": step, "token": token, "files": hashes})
    for parent, _, _ in os.walk(temporary):
        fsync_directory(Path(parent))
    for old in (*list_unmarked(final.parent), *list_overtaken(final.parent)):
        if old.directory == final and (old.token() or 0) <= token:
            remove(old, token=token)
    marker = {"step": step, "token": token, "hashes": digest((temporary / HASHES).read_bytes())}
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.rename(temporary, final)
        try:
            fsync_directory(final.parent)
            _mark(descriptor, json.dumps(marker) + "\n")
        except OSError:
            if final.exists() and os.path.samestat(final.stat(), os.fstat(descriptor)):
                os.rename(final, temporary)
            raise
    finally:
        os.close(descriptor)


def _mark(directory: int, content: str) -> None:
    """Write the marker into the directory of a descriptor, whole or not at all."""
    torn = f".{COMPLETE}.{os.getpid()}"
    with os.fdopen(os.open(torn, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=directory), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(torn, COMPLETE, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it is neither loaded, counted nor lost; return its new name."""
    name, number = checkpoint.with_name(f"{checkpoint.name}.damaged"), 1
    while os.path.lexists(name):
        number += 1
        name = checkpoint.with_name(f"{checkpoint.name}.damaged-{number}")
    os.rename(checkpoint, name)
    return name


def remove(checkpoint: Checkpoint, *, token: int) -> None:
    """Remove a checkpoint at once (by a rename) and then its files. OSError where a file in it is not ours."""
    ours = {*read_json(checkpoint.directory / HASHES)["files"], STATE, HASHES, COMPLETE, METRICS}
    for parent, _, names in os.walk(checkpoint.directory):
        for name in names:
            path = Path(parent, name)
            is_torn = name.startswith((f".{METRICS}.", f".{COMPLETE}."))  # killed while it was being written
            if path.relative_to(checkpoint.directory).as_posix() not in ours and not is_torn:
                raise OSError(f"{path} was not written by this program, so its checkpoint is kept")
    gone = checkpoint.directory.with_name(f".{checkpoint.directory.name}.gone-{token}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(checkpoint.directory, gone)
    shutil.rmtree(gone)


def digest(content: bytes) -> str:
    """Return the hash of a small file, as the marker keeps it."""
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def size_bytes(directory: Path) -> int:
    """Return the bytes of all files under a directory that may be vanishing."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(Path(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def free_bytes(directory: Path) -> int:
    """Return the free space where `directory` is or would be; it may not exist yet."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
