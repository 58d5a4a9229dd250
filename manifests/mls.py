"""Prepare Multilingual LibriSpeech (openslr.org/94): `OUTPUT/mls_LANGUAGE_{train,dev,test}.jsonl` with their indexes.

    python -m manifests.mls data/mls data/manifests --parts polish --workers 8
    python -m manifests.mls data/mls data/manifests --parts polish --download --cleanup

CORPUS_DIR holds `mls_polish` (FLAC) or `mls_polish_opus`; of a language that is there in both forms, Opus is taken.
A part is a language, because lhotse's recipe reads a language as a whole. It also holds it in memory: about 4 kB an
utterance, so 40 GB for English and a few for the others.
"""

import argparse
import tarfile
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lhotse import RecordingSet
from lhotse.recipes import prepare_mls
from lhotse.utils import resumable_download, safe_extract

from manifests.corpus import Load, Part, in_order, parse_arguments, prepare

LANGUAGES = ("dutch", "english", "french", "german", "italian", "polish", "portuguese", "spanish")
SPLITS = ("train", "dev", "test")
SITE = "https://dl.fbaipublicfiles.com/mls"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manifests.mls", description=__doc__.partition("\n")[0])
    parser.add_argument("--site", default=SITE, help=f"where --download fetches from (default: {SITE})")
    arguments = parse_arguments(parser, parts=LANGUAGES, default=(), argv=argv)
    if arguments.download:
        if not arguments.parts:
            parser.error("--download needs --parts")
        for language in arguments.parts:
            _download(arguments.corpus, language, site=arguments.rest.site, cleanup=arguments.cleanup)
    folders = {language: _folder(arguments.corpus, language) for language in LANGUAGES}
    languages = arguments.parts or [language for language, folder in folders.items() if folder]
    missing = [language for language in languages if not folders[language]]
    if missing or not languages:
        wanted = ", ".join(f"mls_{language}" for language in missing) or "folder mls_LANGUAGE"
        parser.error(f"{arguments.corpus} has no {wanted}; --download fetches it")
    groups: dict[Sequence[str], Load] = {
        _names(language): partial(_load, folder, language, workers=arguments.workers)
        for language, folder in folders.items()
        if folder is not None and language in languages
    }
    prepare(arguments.output, groups)


def _folder(corpus: Path, language: str) -> Path | None:
    """Where a language is, Opus before FLAC; None where it is not."""
    return next((path for end in ("_opus", "") if (path := corpus / f"mls_{language}{end}").is_dir()), None)


def _names(language: str) -> tuple[str, ...]:
    return tuple(f"mls_{language}_{split}" for split in SPLITS)


def _load(folder: Path, language: str, *, workers: int) -> dict[str, Part]:
    with tempfile.TemporaryDirectory() as scratch:
        # the recipe takes every language that it finds, so it is shown one
        (Path(scratch) / folder.name).symlink_to(folder.absolute())
        found = prepare_mls(scratch, opus=folder.name.endswith("_opus"), num_jobs=workers)[language]
    parts = {}
    for name, split in zip(_names(language), SPLITS, strict=True):
        recordings = _moved(found[split]["recordings"], old=Path(scratch) / folder.name, new=folder.absolute())
        parts[name] = Part(in_order(recordings, found[split]["supervisions"]))
    return parts


def _moved(recordings: RecordingSet, *, old: Path, new: Path) -> RecordingSet:
    for recording in recordings:
        for source in recording.sources:
            source.source = str(new / Path(source.source).relative_to(old))
    return recordings


def _download(corpus: Path, language: str, *, site: str, cleanup: bool) -> None:
    """Fetch and unpack the Opus form of a language, continuing what an earlier call began."""
    name = f"mls_{language}_opus"
    complete = corpus / name / ".completed"
    archive = corpus / f"{name}.tar.gz"
    if not complete.exists():
        corpus.mkdir(parents=True, exist_ok=True)
        resumable_download(f"{site}/{name}.tar.gz", filename=archive)
        with tarfile.open(archive) as tar:
            safe_extract(tar, path=corpus)
        complete.touch()
    if cleanup:
        archive.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
