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

Nothing with another name is ever touched.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runfiles import fsync_directory, read_json, write_json

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
        """What it scored; empty where that is not known."""
        try:
            metrics = read_json(self.directory / METRICS)
        except (OSError, ValueError):
            return {}
        return metrics if isinstance(metrics, dict) else {}


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """Everything that is named like a checkpoint, by step."""
    found = []
    for entry in _entries(directory):
        match = _STEP.fullmatch(entry.name)
        if match and entry.is_dir(follow_symlinks=False):
            path = Path(entry.path)
            found.append(Checkpoint(int(match[1]), path, is_complete=os.path.lexists(path / COMPLETE)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def list_complete(directory: Path) -> list[Checkpoint]:
    """The checkpoints that count, by step."""
    return [checkpoint for checkpoint in list_checkpoints(directory) if checkpoint.is_complete]


def list_unmarked(directory: Path) -> list[Checkpoint]:
    """Those that this program published but was killed before it wrote the marker, by step."""
    return [c for c in list_checkpoints(directory) if not c.is_complete and os.path.lexists(c.directory / HASHES)]


def list_damaged(directory: Path) -> list[str]:
    """Names of the checkpoints that were set aside."""
    return sorted(entry.name for entry in _entries(directory) if _DAMAGED.fullmatch(entry.name))


def final_directory(directory: Path, *, step: int) -> Path:
    return directory / f"step_{step:08d}"


def temporary_directory(directory: Path, *, step: int, token: int) -> Path:
    return directory / f".step_{step:08d}.tmp-{token}"


def make_temporary(temporary: Path) -> None:
    """An empty temporary directory, and the directories above it."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()


def remove_temporary(directory: Path, *, token: int) -> list[str]:
    """Remove what dead processes left half written or half removed: directories of tokens up to ours. Their names."""
    removed = []
    for entry in _entries(directory):
        match = _TEMPORARY.fullmatch(entry.name)
        if match and int(match[1]) <= token and entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
            removed.append(entry.name)
    return removed


def publish(temporary: Path, final: Path, *, step: int, token: int, hashes: dict[str, Any]) -> None:
    """Make a written checkpoint count: hashes, everything on disk, its name, and the marker at the very end.

    One of that step that never got its marker makes place; anything else there is an OSError.
    """
    write_json(temporary / HASHES, {"step": step, "token": token, "files": hashes})
    for parent, _, _ in os.walk(temporary):
        fsync_directory(Path(parent))
    for unmarked in list_unmarked(final.parent):
        if unmarked.directory == final:
            remove(unmarked, token=token)
    os.rename(temporary, final)
    try:
        fsync_directory(final.parent)
        write_json(final / COMPLETE, {"step": step, "token": token, "hashes": digest((final / HASHES).read_bytes())})
    except OSError:
        os.rename(final, temporary)
        raise


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it is neither loaded, counted nor lost."""
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
    """The hash of a small file, as the marker keeps it."""
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def size_bytes(directory: Path) -> int:
    """Bytes of all files under a directory that may be vanishing."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(Path(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def free_bytes(directory: Path) -> int:
    """Free space where `directory` is or would be; it may not exist yet."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
