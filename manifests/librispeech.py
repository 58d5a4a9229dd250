"""Prepare LibriSpeech or Mini LibriSpeech (openslr.org/12, /31): `OUTPUT/librispeech_PART.jsonl` with its index.

    python -m manifests.librispeech data/LibriSpeech data/manifests --workers 8
    python -m manifests.librispeech data data/manifests --parts dev-clean-2 train-clean-5 --download --cleanup

CORPUS_DIR is the folder with the parts (train-clean-100, ...) or the one above, which holds `LibriSpeech`.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lhotse import RecordingSet, SupervisionSet
from lhotse.recipes import download_librispeech, prepare_librispeech
from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH

from manifests.corpus import Load, Part, in_order, parse_arguments, prepare

PARTS = (*LIBRISPEECH, *MINI_LIBRISPEECH)
SITE = "https://www.openslr.org/resources"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manifests.librispeech", description=__doc__.partition("\n")[0])
    parser.add_argument("--site", default=SITE, help=f"where --download fetches from (default: {SITE})")
    arguments = parse_arguments(parser, parts=PARTS, default=(), argv=argv)
    if arguments.download:
        if not arguments.parts:
            parser.error("--download needs --parts")
        for part in arguments.parts:
            download_librispeech(arguments.corpus, dataset_parts=part, base_url=arguments.rest.site)
            if arguments.cleanup:
                (arguments.corpus / f"{part}.tar.gz").unlink(missing_ok=True)
    corpus = arguments.corpus / "LibriSpeech" if (arguments.corpus / "LibriSpeech").is_dir() else arguments.corpus
    parts = arguments.parts or [part for part in PARTS if (corpus / part).is_dir()]
    missing = [part for part in parts if not (corpus / part).is_dir()]
    if missing or not parts:
        parser.error(f"{corpus} has no {', '.join(missing) or 'part of LibriSpeech'}; --download fetches it")
    groups: dict[Sequence[str], Load] = {
        (f"librispeech_{part}",): partial(_load, corpus, part, workers=arguments.workers) for part in parts
    }
    prepare(arguments.output, groups)


def _load(corpus: Path, part: str, *, workers: int) -> dict[str, Part]:
    return {f"librispeech_{part}": load_folders(corpus, [part], workers=workers)}


def load_folders(corpus: Path, folders: Sequence[str], *, workers: int) -> Part:
    """All utterances of some folders of `corpus`, each `SPEAKER/CHAPTER/*.flac` and `*.trans.txt` inside."""
    found = prepare_librispeech(corpus, dataset_parts=folders, num_jobs=workers).values()
    recordings = RecordingSet.from_recordings(one for part in found for one in part["recordings"])
    supervisions = SupervisionSet.from_segments(one for part in found for one in part["supervisions"])
    cuts = in_order(recordings, supervisions)
    transcripts = [path for folder in folders for path in (corpus / folder).rglob("*.trans.txt")]
    num_lines = sum(len(path.read_text().splitlines()) for path in transcripts)
    return Part(cuts, dropped=Counter({"no audio file": num_lines - len(cuts)} if num_lines > len(cuts) else {}))


if __name__ == "__main__":
    main()
