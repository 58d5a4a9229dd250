"""Prepare GigaSpeech (Chen et al. 2021, arXiv:2106.06909): `OUTPUT/gigaspeech_PART.jsonl` with its index.

    python -m manifests.gigaspeech data/GigaSpeech data/manifests --parts XS DEV TEST --workers 8
    python -m manifests.gigaspeech data/GigaSpeech data/manifests --parts M DEV TEST \
        --download --password-file password.txt --cleanup

CORPUS_DIR holds `GigaSpeech.json` and `audio/`. The corpus is given out with a password:
https://github.com/SpeechColab/GigaSpeech. The texts keep their tags (<COMMA>, <PERIOD>, ...); an utterance with a
garbage tag (<SIL>, <MUSIC>, <NOISE>, <OTHER>) is left out and counted, nothing else is, whatever its length.
Needs speechcolab (`pip install speechcolab`), which reads the JSON piece by piece: the whole has gigabytes.
"""

import argparse
import re
import shutil
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import yaml
from lhotse.recipes.gigaspeech import download_gigaspeech, prepare_gigaspeech

from core.text.normalization import GARBAGE_TAGS
from manifests.corpus import Load, Part, parse_arguments, prepare

PARTS = ("XS", "S", "M", "L", "XL", "DEV", "TEST")
HOSTS = ("tsinghua", "speechocean", "magicdata")
_GARBAGE = re.compile("|".join(f"<{tag}>" for tag in sorted(GARBAGE_TAGS)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manifests.gigaspeech", description=__doc__.partition("\n")[0])
    parser.add_argument("--password-file", type=Path, help="with --download: a file with the password you were given")
    parser.add_argument("--host", choices=HOSTS, default=HOSTS[0], help="where --download fetches from")
    arguments = parse_arguments(parser, parts=PARTS, default=("XL", "DEV", "TEST"), argv=argv)
    if find_spec("speechcolab") is None:
        parser.error("GigaSpeech needs one more package: pip install speechcolab")
    corpus, output = arguments.corpus, arguments.output
    if arguments.download:
        if arguments.rest.password_file is None:
            parser.error("--download needs --password-file; https://github.com/SpeechColab/GigaSpeech gives them out")
        password = arguments.rest.password_file.read_text().strip()
        download_gigaspeech(password, corpus, dataset_parts=arguments.parts, host=arguments.rest.host)
        if arguments.cleanup:
            delete_archives(corpus)
    if not (corpus / "GigaSpeech.json").is_file():
        parser.error(f"{corpus} has no GigaSpeech.json; --download fetches it")
    groups: dict[Sequence[str], Load] = {
        (f"gigaspeech_{part}",): partial(_load, corpus, part, scratch=_scratch(output, part), workers=arguments.workers)
        for part in arguments.parts
    }
    prepare(output, groups)
    for part in arguments.parts:
        shutil.rmtree(_scratch(output, part), ignore_errors=True)


def is_speech(text: str) -> bool:
    return _GARBAGE.search(text) is None


def delete_archives(corpus: Path) -> None:
    """Delete what the download left behind: the encrypted files of files.yaml and their decrypted archives."""
    listed = yaml.safe_load((corpus / "files.yaml").read_text())
    for path in (name for category in listed.values() for name in category if name.endswith(".aes")):
        for archive in (corpus / path, (corpus / path).with_suffix("")):
            if archive.suffix in {".aes", ".tgz", ".gz"}:
                archive.unlink(missing_ok=True)


def _scratch(output: Path, part: str) -> Path:
    return output / f".gigaspeech_{part}"


def _load(corpus: Path, part: str, *, scratch: Path, workers: int) -> dict[str, Part]:
    shutil.rmtree(scratch, ignore_errors=True)  # the recipe takes half a file of a killed preparation for a whole one
    found = prepare_gigaspeech(corpus, scratch, dataset_parts=part, num_jobs=workers)[part]
    return {f"gigaspeech_{part}": Part(found["cuts"], is_speech=is_speech)}


if __name__ == "__main__":
    main()
