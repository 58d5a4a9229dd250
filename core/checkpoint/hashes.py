"""Hashes of a checkpoint's files: by them damage is found before anything is loaded. They do not stop malice.

Every rank hashes a share of the files: those that carry its rank in their name, which it probably wrote itself, so
that their pages are still in its memory.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, TypedDict

from core.rundir.checkpoints import COMPLETE, HASHES, STATE, WEIGHTS, digest
from core.unpickling import check_regular, check_tree

RANK_IN_NAME = re.compile(r"(?:^__|_rank_)(\d+)")  # torch DCP: __3_0.distcp; DeepSpeed: zero_pp_rank_3_...


class FileHash(TypedDict):
    bytes: int
    blake2b: str


def hash_share(directory: Path, *, rank: int, world_size: int) -> dict[str, FileHash]:
    """Return hashes of this rank's share of a checkpoint by path in it; the files are on disk after this."""
    hashes: dict[str, FileHash] = {}
    for name in _files(directory):
        if _owner(name, world_size) == rank:
            hashes[name] = _hash(directory / name, sync=True)
    return hashes


def damage(directory: Path, *, rank: int, world_size: int) -> str | None:
    """Tell what is wrong with this rank's share of a checkpoint; None if all hashes hold."""
    try:
        expected = _expected(directory)
        present = set(_files(directory))
        for name in sorted(expected):
            if _owner(name, world_size) != rank:
                continue
            if name not in present:
                return f"{name} is missing"
            size = (directory / name).stat().st_size
            if size != expected[name]["bytes"]:
                return f"{name} has {size} bytes instead of {expected[name]['bytes']}"
            if _hash(directory / name) != expected[name]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _expected(directory: Path) -> dict[str, FileHash]:
    """Return the recorded hashes, themselves checked by the marker where there is one."""
    check_regular(directory / HASHES)
    content = (directory / HASHES).read_bytes()
    marker = directory / COMPLETE
    if os.path.lexists(marker):
        check_regular(marker)
        if json.loads(marker.read_bytes())["hashes"] != digest(content):
            raise ValueError(f"{HASHES} is not what was written")
    hashes: Any = json.loads(content)["files"]
    if not isinstance(hashes, dict) or STATE not in hashes:
        raise ValueError(f"{HASHES} does not list {STATE}")
    return hashes


def _files(directory: Path) -> list[str]:
    weights = [path.relative_to(directory).as_posix() for path in check_tree(directory / WEIGHTS)]
    return [STATE, *weights] if os.path.lexists(directory / STATE) else weights


def _owner(name: str, world_size: int) -> int:
    match = RANK_IN_NAME.search(Path(name).name)
    return int(match[1]) % world_size if match else 0


def _hash(path: Path, *, sync: bool = False) -> FileHash:
    check_regular(path)
    with path.open("rb") as file:
        blake2b = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": file.tell(), "blake2b": blake2b}
