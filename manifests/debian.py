"""Corpora that are Debian packages: fetched, unpacked, and the text of their licence.

with unpacked({"festvox-ru": SHA256}, folder=None) as packages:
    copy_license(packages / "festvox-ru", Path("out/LICENSE"), name="BSD-like")
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the packages are: `packages`, a folder, is None where they are to be fetched."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--packages", type=Path, help="folder with the .deb files")
    source.add_argument("--download", action="store_true", help="fetch the .deb files with apt-get download")


@contextmanager
def unpacked(packages: Mapping[str, str], *, folder: Path | None) -> Iterator[Path]:
    """A temporary folder with what is in each package below its name.

    `packages` maps names to the SHA-256 of the .deb file that is known to work; another one is used all the same, and
    said. The .deb files are those in `folder`, or are fetched where it is None.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            folder = Path(scratch) / "packages"
            folder.mkdir()
            failed = "apt-get cannot fetch it; try apt-get update, or fetch the .deb yourself and give its --packages"
            _run("apt-get", "download", *packages, folder=folder, failed=failed)
        content = Path(scratch) / "content"
        content.mkdir()
        for name, sha256 in packages.items():
            package = _package(folder, name, sha256=sha256)
            _run("dpkg-deb", "-x", str(package.absolute()), name, folder=content, failed=f"{package}: damaged")
        yield content


def copy_license(package: Path, path: Path, *, name: str) -> None:
    """Put the text of licence `name` from the Debian copyright file of an unpacked package at `path`."""
    (copyright_file,) = package.glob("usr/share/doc/*/copyright")
    text = re.search(rf"^License: {re.escape(name)}\n((?: .*\n)+)", copyright_file.read_text("utf-8"), re.MULTILINE)
    if text is None:
        raise ValueError(f"{copyright_file.relative_to(package)}: no licence {name}; the package is not the known one")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (line[1:].rstrip() for line in text[1].splitlines())
    path.write_text("".join("\n" if line == "." else f"{line}\n" for line in lines), encoding="utf-8")


def _package(folder: Path, name: str, *, sha256: str) -> Path:
    found = sorted(folder.glob(f"{name}_*.deb"))
    if len(found) != 1:
        raise SystemExit(f"{folder}: {len(found)} files {name}_*.deb, expected one; --download fetches them")
    with found[0].open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            print(f"{found[0].name} is another version than the one that is known: results may differ")
    return found[0]


def _run(program: str, *arguments: str, folder: Path, failed: str) -> None:
    try:
        subprocess.run([program, *arguments], cwd=folder, check=True)
    except FileNotFoundError:
        raise SystemExit(f"{program} is not installed; it comes with Debian and Ubuntu, and is needed here") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{failed} ({program}: exit code {error.returncode})") from None
