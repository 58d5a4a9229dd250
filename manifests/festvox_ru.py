"""Prepare festvox-ru, one Russian voice with phone labels: `OUTPUT/russian_{train,dev,test}.jsonl` with their indexes.

    python -m manifests.festvox_ru data/festvox_ru --download              # fetches the package with apt-get download
    python -m manifests.festvox_ru data/festvox_ru --packages FOLDER       # FOLDER holds festvox-ru_*.deb

The Debian package has 620 sentences, 99.5 minutes; the demo corpus (manifests/demo) has the first 120 of them, and here
they stay in the part that they have there. A cut has the alignments "phone", the package's labels, and "word", which
follow from them. Audio and its licence go to OUTPUT/audio. Needs dpkg-deb.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import soundfile
from lhotse import CutSet, MonoCut
from lhotse.supervision import AlignmentItem

from manifests.corpus import Load, Part, prepare
from manifests.debian import add_source, copy_license, unpacked
from manifests.ogg import SAMPLE_RATE_HZ, ogg_utterance
from manifests.russian_words import words_from_phones
from manifests.split import split_by_family

PACKAGE = "festvox-ru"
SHA256 = "21ef3f0f2978ecf2e2eddb367cb0ff4a72572196d28dc69feb84f4177af5e6c4"
LICENSE = "BSD-like"
VOICE = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
PARTS = ("train", "dev", "test")
NUM_DEMO_SENTENCES = 120
DEMO_HELD_OUT_WORDS = {"test_words": 180, "dev_words": 90}
HELD_OUT_WORDS = {"test_words": 900, "dev_words": 450}  # of the sentences that the demo corpus does not have


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manifests.festvox_ru", description=__doc__.partition("\n")[0])
    parser.add_argument("output_dir", type=Path, help="where the manifests go, and the audio in a folder of its own")
    add_source(parser)
    options = parser.parse_args(argv)
    with ExitStack() as until_done:

        @cache  # unpacked for the first part that is missing, for all of them
        def package() -> Path:
            return until_done.enter_context(unpacked({PACKAGE: SHA256}, folder=options.packages)) / PACKAGE

        groups: dict[Sequence[str], Load] = {
            (f"russian_{part}",): partial(_load, package, part, folder=options.output_dir / "audio") for part in PARTS
        }
        prepare(options.output_dir, groups)


def demo_sentences(names: Mapping[str, str]) -> list[str]:
    """Names of the sentences that the demo corpus has too."""
    return sorted(names)[:NUM_DEMO_SENTENCES]


def split(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of `texts` by part, in order; the sentences of the demo corpus are where they are in it."""
    in_demo = demo_sentences(texts)
    demo = split_by_family({name: texts[name] for name in in_demo}, **DEMO_HELD_OUT_WORDS)
    rest = split_by_family({name: texts[name] for name in texts.keys() - set(in_demo)}, **HELD_OUT_WORDS)
    return {part: demo[part] + rest[part] for part in PARTS}  # in order: the names of the demo come first


def read_texts(package: Path) -> dict[str, str]:
    """The sentences by name, without the "+" that marks some stressed vowels."""
    path, texts = package / VOICE / "etc" / "txt.done.data", {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        sentence = re.fullmatch(r'\( (ru_\d+) "(.*)" \)', line)
        if sentence is None:
            raise ValueError(f'{path}:{number}: got {line!r}, expected ( ru_NUMBER "TEXT" )')
        texts[sentence[1]] = sentence[2].replace("+", "")
    return texts


def read_sentence(package: Path, name: str, *, text: str, audio: Path) -> MonoCut:
    """Encode a sentence to the file `audio`; return its cut with the times of phones and words."""
    recording = package / VOICE / "wav" / f"{name}.wav"
    samples, sample_rate_hz = soundfile.read(recording, dtype="int16", always_2d=True)  # (S, channels)
    if (sample_rate_hz, samples.shape[1]) != (SAMPLE_RATE_HZ, 1):
        got = f"{sample_rate_hz} Hz and {samples.shape[1]} channels"
        raise ValueError(f"{recording}: got {got}, expected {SAMPLE_RATE_HZ} Hz and one channel")
    cut = ogg_utterance(samples[:, 0], audio, name=f"russian-{name}", text=text, language="Russian",
                        speaker="msu_ru_nsh")  # fmt: skip
    phones = read_phones(_labels(package, name))
    cut.supervisions[0].alignment = {"phone": phones, "word": words_from_phones(text, phones)}
    return cut


def read_phones(path: Path) -> list[AlignmentItem]:
    """A festvox label file: after the line "#", lines of `end_s color phone`; a phone begins where the last ended."""
    phones, start_ms = [], 0
    for line in path.read_text().partition("#\n")[2].splitlines():
        label = re.fullmatch(r"\s*(\d+\.\d+)\s+\d+\s+(\S+)\s*", line)
        end_ms = round(1000 * float(label[1])) if label else 0
        if label is None or end_ms <= start_ms:
            raise ValueError(f"{path}: got {line!r}, expected END_S COLOR PHONE that ends after {start_ms / 1000} s")
        phones.append(AlignmentItem(label[2], start=start_ms / 1000, duration=(end_ms - start_ms) / 1000))
        start_ms = end_ms
    return phones


def _load(package: Callable[[], Path], part: str, *, folder: Path) -> dict[str, Part]:
    copy_license(package(), folder / "LICENSE", name=LICENSE)
    texts = read_texts(package())
    names = split(texts)[part]
    dropped: Counter[str] = Counter()
    cuts = _cuts(package(), {name: texts[name] for name in names}, folder=folder, dropped=dropped)
    return {f"russian_{part}": Part(CutSet(cuts), dropped=dropped)}


def _cuts(package: Path, texts: Mapping[str, str], *, folder: Path, dropped: Counter[str]) -> Iterator[MonoCut]:
    for name, text in texts.items():
        if not (package / VOICE / "wav" / f"{name}.wav").exists():
            dropped["no audio file"] += 1
        elif not _labels(package, name).exists():
            dropped["no phone labels"] += 1
        else:
            yield read_sentence(package, name, text=text, audio=folder / f"{name}.ogg")


def _labels(package: Path, name: str) -> Path:
    return package / VOICE / "lab" / f"{name}.lab"


if __name__ == "__main__":
    main()
