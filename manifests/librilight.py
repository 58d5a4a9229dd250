"""Prepare the limited splits of Libri-Light, 10 minutes, 1 hour and 10 hours to fine-tune on (arXiv:1912.07875).

    python -m manifests.librilight data/librispeech_finetuning data/manifests
    python -m manifests.librilight data data/manifests --parts 10h --download --cleanup

CORPUS_DIR is the folder `librispeech_finetuning` or the one above it: `1h/0` to `1h/5` of 10 minutes each and `9h`, in
each of them `clean` and `other`. The splits contain each other: 10min is fold 0, 1h all six, 10h those and `9h`.
"""

import argparse
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lhotse.utils import resumable_download, safe_extract

from manifests.corpus import Load, Part, parse_arguments, prepare
from manifests.librispeech import load_folders

_FOLDS = [f"1h/{fold}" for fold in range(6)]
FOLDERS = {"10min": _FOLDS[:1], "1h": _FOLDS, "10h": [*_FOLDS, "9h"]}
ARCHIVE = "librispeech_finetuning"
SITE = "https://dl.fbaipublicfiles.com/librilight/data"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manifests.librilight", description=__doc__.partition("\n")[0])
    parser.add_argument("--site", default=SITE, help=f"where --download fetches from (default: {SITE})")
    arguments = parse_arguments(parser, parts=tuple(FOLDERS), default=(), argv=argv)
    if arguments.download:
        _download(arguments.corpus, site=arguments.rest.site, cleanup=arguments.cleanup)
    corpus = arguments.corpus / ARCHIVE if (arguments.corpus / ARCHIVE).is_dir() else arguments.corpus
    missing = {part: [name for name in FOLDERS[part] if not _halves(corpus, name)] for part in FOLDERS}
    parts = arguments.parts or [part for part in FOLDERS if not missing[part]]
    lacking = [name for part in parts for name in missing[part]] if parts else missing["10min"]
    if lacking:
        parser.error(f"{corpus} has no {', '.join(dict.fromkeys(lacking))}; --download fetches them")
    groups: dict[Sequence[str], Load] = {
        (f"librilight_{part}",): partial(_load, corpus, part, workers=arguments.workers) for part in parts
    }
    prepare(arguments.output, groups)


def _halves(corpus: Path, name: str) -> list[str]:
    """`clean` and `other` of a folder; of one that lacks a half, none."""
    halves = [f"{name}/{half}" for half in ("clean", "other")]
    return halves if all((corpus / half).is_dir() for half in halves) else []


def _load(corpus: Path, part: str, *, workers: int) -> dict[str, Part]:
    folders = [half for name in FOLDERS[part] for half in _halves(corpus, name)]
    return {f"librilight_{part}": load_folders(corpus, folders, workers=workers)}


def _download(corpus: Path, *, site: str, cleanup: bool) -> None:
    """Fetch and unpack the one archive of all splits, continuing what an earlier call began."""
    complete = corpus / ARCHIVE / ".completed"
    archive = corpus / f"{ARCHIVE}.tgz"
    if not complete.exists():
        corpus.mkdir(parents=True, exist_ok=True)
        resumable_download(f"{site}/{ARCHIVE}.tgz", filename=archive)
        with tarfile.open(archive) as tar:
            safe_extract(tar, path=corpus)
        complete.touch()
    if cleanup:
        archive.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
