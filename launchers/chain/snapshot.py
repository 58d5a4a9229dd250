"""The code that a chain runs: a copy, so that editing the checkout does not change the links to come.

    runs/.code/3f9a0c41b2d7/     everything tracked by git, and what is new in it and looks like code, copied;
                                 what git ignores (.venv, data/, runs/) and other new files, as links to the checkout

Equal copies of one person are one copy. A link starts in it, so relative paths mean what they mean in the checkout. A
copy that no run's ledger names goes with the first launch that finds it a day old.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from core.rundir.files import LEDGER
from core.rundir.repository import ask_git
from core.rundir.whole_files import fsync_directory, locked

FOLDER = ".code"
LOCK = ".lock-"  # and the user: where a folder of runs is shared, everyone has copies of their own
GIT_TIMEOUT_S = 60.0
UNUSED_S = 86400.0  # a launch takes its copy first and writes its ledgers later, after sbatch has answered
CODE = (".py", ".sub", ".sh", ".yaml", ".yml")
DATA = "data"  # where recipes put what they prepare
SITE = "slurm/cluster.sh"  # ignored by git, but read by every link
LEFT_OUT = frozenset((".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"))


class Contents(NamedTuple):
    """The paths of a checkout, relative to its root."""

    copied: list[str]
    linked: list[str]
    new: list[str]  # among the copied: not tracked by git


class Snapshot(NamedTuple):
    """A copy of the code; `root` takes the place of the checkout."""

    root: Path
    new: list[str]  # files that are in it although git does not track them


def take_snapshot(checkout: Path, runs: Path, *, is_dry: bool = False) -> Snapshot:
    """Copy the checkout as it is now, or find the copy that equals it; copies that no run needs any more go.

    `is_dry`: only say where it would be.
    """
    contents = _with_data(_contents(checkout))
    digest = hashlib.sha256()
    for name in contents.copied:
        digest.update(f"{name}\0{os.access(checkout / name, os.X_OK)}\0".encode())
        digest.update(hashlib.sha256((checkout / name).read_bytes()).digest())
    digest.update("\n".join([str(os.geteuid()), str(checkout), *contents.linked]).encode())
    root = runs / FOLDER / digest.hexdigest()[:12]
    if not is_dry:
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.parent / f"{LOCK}{os.geteuid()}"):  # one launcher at a time takes a copy or removes some
            if root.exists():
                os.utime(root)
            else:
                _fill(root, checkout, contents)
            unused = _put_away_unused(runs)
        for path in unused:
            shutil.rmtree(path, ignore_errors=True)  # links in it are removed, not followed
    return Snapshot(root, contents.new)


def _put_away_unused(runs: Path) -> list[Path]:
    """Rename copies that no ledger names and no launch took lately, and what killed launchers left; return them."""
    old = [path for path in (runs / FOLDER).iterdir() if not path.name.startswith(LOCK) and _is_old(path.lstat())]
    try:
        # Their bytes, as a line that cannot be read counts too.
        ledgers = [path.read_bytes() for path in runs.glob(f"*/{LEDGER}")] if old else []
    except OSError:
        return []  # what it names is not known
    put_away = []
    for path in old:
        if not any(f"{FOLDER}/{path.name}".encode() in ledger for ledger in ledgers):
            gone = path if path.name.startswith(".") else path.with_name(f".{path.name}.gone")
            os.rename(path, gone)
            put_away.append(gone)
    return put_away


def _is_old(facts: os.stat_result) -> bool:
    return facts.st_uid == os.geteuid() and facts.st_mtime < time.time() - UNUSED_S


def _fill(root: Path, checkout: Path, contents: Contents) -> None:
    """Make the copy beside its place and rename it, so that it is whole or not there."""
    temporary = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        for name in contents.copied:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, temporary / name)
        for name in contents.linked:
            if name == DATA and not os.path.lexists(checkout / name):
                (checkout / name).mkdir()
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).symlink_to((checkout / name).resolve())
        fsync_directory(temporary)
        os.rename(temporary, root)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _with_data(contents: Contents) -> Contents:
    """Link `data` also where it is not there yet: what a job writes into a copy goes with the copy."""
    if any(Path(name).parts[0] == DATA for name in contents.copied + contents.linked):
        return contents
    return contents._replace(linked=sorted([*contents.linked, DATA]))


def _contents(checkout: Path) -> Contents:
    tracked = _git(checkout, "ls-files", "-z")
    if tracked is None:
        return _contents_without_git(checkout)
    others = _git(checkout, "ls-files", "-z", "--others", "--directory", "--no-empty-directory") or []
    ignored = set(_git(checkout, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory") or [])
    new: list[str] = []
    linked: list[str] = []
    for name in others:
        if _is_left_out(name):
            continue
        if name in ignored:
            (new if name == SITE else linked).append(name.rstrip("/"))
        elif name.endswith("/"):
            _sort_folder(checkout, name, new, linked)
        else:
            (new if name.endswith(CODE) else linked).append(name)
    copied = [name for name in tracked if (checkout / name).is_file()]
    return Contents(sorted(copied + new), sorted(linked), sorted(name for name in new if name != SITE))


def _sort_folder(checkout: Path, name: str, new: list[str], linked: list[str]) -> None:
    """Sort a folder that git does not know: one with code is copied file by file, any other is data and linked."""
    files = _git(checkout, "ls-files", "-z", "--others", "--exclude-standard", "--", name) or []
    code = [file for file in files if file.endswith(CODE)]
    if not code:
        linked.append(name.rstrip("/"))
        return
    new += code
    linked += [file for file in files if not file.endswith(CODE)]


def _contents_without_git(checkout: Path) -> Contents:
    """Sort an unpacked archive: folders with code are copied, everything else at the top is linked."""
    copied: list[str] = []
    linked: list[str] = []
    for path in sorted(checkout.iterdir()):
        if _is_left_out(path.name) or path.name.startswith("."):
            if path.name == ".venv":
                linked.append(path.name)
        elif path.is_dir() and not path.is_symlink() and any(_files(path, CODE)) and path.name != "runs":
            copied += [str(file.relative_to(checkout)) for file in _files(path, ("",))]
        else:
            (copied if path.is_file() else linked).append(path.name)
    return Contents(sorted(copied), linked, [])


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_left_out(name)]
        yield from (Path(root, name) for name in names if name.endswith(endings))


def _is_left_out(name: str) -> bool:
    return bool(LEFT_OUT & set(Path(name).parts)) or name.endswith(".pyc")


def _git(checkout: Path, *arguments: str) -> list[str] | None:
    """Return names that git prints; None where there is no git, or this is not the root of its work tree."""
    if not (checkout / ".git").exists():
        return None
    try:
        return [name for name in ask_git(checkout, *arguments, timeout_s=GIT_TIMEOUT_S).split("\0") if name]
    except (OSError, subprocess.SubprocessError):
        return None
