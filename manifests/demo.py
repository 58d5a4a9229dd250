"""Rebuild the speech that ships with Baton (manifests/demo) from three Debian packages.

    python -m manifests.demo --output DIR --download            # fetches the packages with apt-get download
    python -m manifests.demo --output DIR --packages FOLDER     # FOLDER holds the .deb files

English: the prompts of asterisk-core-sounds-en that are speech. Russian: the first sentences of festvox-ru, with
its phone labels, and the words that they make, as lhotse alignments. The manifests come out equal byte for byte; the
audio is as equal as the Vorbis encoder of the installed libsndfile is. Needs dpkg-deb, and PyAV to decode G.722
(`pip install av`).
"""

import argparse
import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from lhotse import MonoCut
from rich.progress import track

from core.data.index import write_manifest
from manifests import festvox_ru
from manifests.debian import add_source, copy_license, unpacked
from manifests.ogg import ogg_utterance
from manifests.prompts import read_prompts
from manifests.split import split_by_family, words_of

HELD_OUT_WORDS = {
    "english": {"test_words": 510, "dev_words": 160},
    "russian": festvox_ru.DEMO_HELD_OUT_WORDS,
}
NUM_OVERFIT = 10
OVERFIT_SECONDS = (1.5, 4.0)
PACKAGES = {
    "asterisk-core-sounds-en-g722": "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
    "asterisk-core-sounds-en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    festvox_ru.PACKAGE: festvox_ru.SHA256,
}


def build(packages: Path, *, output: Path) -> None:
    """Write audio, licences and manifests below `output` from the unpacked `packages`."""
    english = _english_cuts(packages, output / "english")
    russian = _russian_cuts(packages / festvox_ru.PACKAGE, output / "russian")
    for language, cuts in (("english", english), ("russian", russian)):
        texts = {name: cut.supervisions[0].text for name, cut in cuts.items()}
        parts = split_by_family(texts, **HELD_OUT_WORDS[language])
        if language == "english":
            parts["overfit"] = overfit_names({name: cuts[name].duration for name in parts["train"]})
        for part, names in parts.items():
            write_manifest((cuts[name] for name in names), output / f"{language}_{part}.jsonl")
            num_words = sum(len(words_of(texts[name])) for name in names)
            minutes = sum(cuts[name].duration for name in names) / 60
            print(f"{language}_{part}.jsonl: {len(names)} utterances, {num_words} words, {minutes:.1f} minutes")


def overfit_names(durations_s: Mapping[str, float]) -> list[str]:
    """The few utterances that a model must be able to learn by heart: neither short nor long, spread over the names."""
    shortest_s, longest_s = OVERFIT_SECONDS
    fitting = [name for name, duration_s in durations_s.items() if shortest_s <= duration_s <= longest_s]
    return fitting[:: len(fitting) // NUM_OVERFIT][:NUM_OVERFIT]


def _english_cuts(packages: Path, folder: Path) -> dict[str, MonoCut]:
    listing = packages / "asterisk-core-sounds-en/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    sounds = packages / "asterisk-core-sounds-en-g722/usr/share/asterisk/sounds/en_US_f_Allison"
    copy_license(packages / "asterisk-core-sounds-en", folder / "LICENSE", name="CC-BY-SA-3.0")
    cuts = {}
    for path, prompt in track(read_prompts(gzip.decompress(listing.read_bytes()).decode()).items(), "English"):
        if not (sounds / f"{path}.g722").exists():  # the listing names one prompt that was never recorded
            continue
        audio = folder / f"{path}.ogg"
        samples = _decode_g722(sounds / f"{path}.g722")
        cuts[path] = ogg_utterance(samples, audio, name=f"english-{path.replace('/', '-')}", text=prompt.spoken,
                                   language="English", speaker="allison_smith")  # fmt: skip
        if prompt.spoken != prompt.written:
            cuts[path].supervisions[0].custom = {"written": prompt.written}
    return cuts


def _russian_cuts(package: Path, folder: Path) -> dict[str, MonoCut]:
    copy_license(package, folder / "LICENSE", name=festvox_ru.LICENSE)
    texts = festvox_ru.read_texts(package)
    return {
        name: festvox_ru.read_sentence(package, name, text=texts[name], audio=folder / f"{name}.ogg")
        for name in track(festvox_ru.demo_sentences(texts), "Russian")
    }


def _decode_g722(path: Path) -> np.ndarray:
    """Samples (S,) int16 of a headerless G.722 file: 16 kHz, mono, two samples a byte."""
    try:
        import av
    except ImportError:
        raise SystemExit("decoding G.722 needs PyAV: pip install av") from None
    with av.open(str(path), format="g722") as container:
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manifests.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the corpus")
    add_source(parser)
    options = parser.parse_args(argv)
    with unpacked(PACKAGES, folder=options.packages) as packages:
        build(packages, output=options.output)


if __name__ == "__main__":
    main()
