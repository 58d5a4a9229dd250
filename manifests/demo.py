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
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem
from rich.progress import track

from core.data.index import write_manifest
from manifests.prompts import read_prompts
from manifests.russian_words import words_from_phones
from manifests.split import split_by_family, words_of

SAMPLE_RATE_HZ = 16_000
NUM_RUSSIAN_SENTENCES = 120
HELD_OUT_WORDS = {
    "english": {"test_words": 510, "dev_words": 160},
    "russian": {"test_words": 180, "dev_words": 90},
}
NUM_OVERFIT = 10
OVERFIT_SECONDS = (1.5, 4.0)
PACKAGES = {
    "asterisk-core-sounds-en-g722": "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
    "asterisk-core-sounds-en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    "festvox-ru": "21ef3f0f2978ecf2e2eddb367cb0ff4a72572196d28dc69feb84f4177af5e6c4",
}
_VOICE = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"


def build(packages: Path, *, output: Path) -> None:
    """Write audio, licences and manifests below `output` from the .deb files in `packages`."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, sha256 in PACKAGES.items():
            _unpack(packages, name, sha256=sha256, to=Path(scratch) / name)
        english = _english_cuts(Path(scratch), output / "english")
        russian = _russian_cuts(Path(scratch) / "festvox-ru", output / "russian")
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


def _english_cuts(unpacked: Path, folder: Path) -> dict[str, MonoCut]:
    listing = unpacked / "asterisk-core-sounds-en/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    sounds = unpacked / "asterisk-core-sounds-en-g722/usr/share/asterisk/sounds/en_US_f_Allison"
    _copy_license(unpacked / "asterisk-core-sounds-en", folder / "LICENSE", name="CC-BY-SA-3.0")
    cuts = {}
    for path, prompt in track(read_prompts(gzip.decompress(listing.read_bytes()).decode()).items(), "English"):
        if not (sounds / f"{path}.g722").exists():  # the listing names one prompt that was never recorded
            continue
        audio = folder / f"{path}.ogg"
        num_samples = _write_ogg(_decode_g722(sounds / f"{path}.g722"), audio)
        cuts[path] = _cut(f"english-{path.replace('/', '-')}", audio, num_samples=num_samples, text=prompt.spoken,
                          language="English", speaker="allison_smith")  # fmt: skip
        if prompt.spoken != prompt.written:
            cuts[path].supervisions[0].custom = {"written": prompt.written}
    return cuts


def _russian_cuts(unpacked: Path, folder: Path) -> dict[str, MonoCut]:
    _copy_license(unpacked, folder / "LICENSE", name="BSD-like")
    sentences = (unpacked / _VOICE / "etc/txt.done.data").read_text(encoding="utf-8")
    texts = dict(re.findall(r'^\( (ru_\d+) "(.*)" \)$', sentences, flags=re.MULTILINE))
    cuts = {}
    for name in track(sorted(texts)[:NUM_RUSSIAN_SENTENCES], "Russian"):
        samples, sample_rate_hz = soundfile.read(unpacked / _VOICE / "wav" / f"{name}.wav", dtype="int16")
        assert sample_rate_hz == SAMPLE_RATE_HZ and samples.ndim == 1
        num_samples = _write_ogg(samples, folder / f"{name}.ogg")
        text = texts[name].replace("+", "")  # "+" marks a stressed vowel
        cuts[name] = _cut(f"russian-{name}", folder / f"{name}.ogg", num_samples=num_samples, text=text,
                          language="Russian", speaker="msu_ru_nsh")  # fmt: skip
        phones = _phones(unpacked / _VOICE / "lab" / f"{name}.lab")
        cuts[name].supervisions[0].alignment = {"phone": phones, "word": words_from_phones(text, phones)}
    return cuts


def _phones(label_file: Path) -> list[AlignmentItem]:
    """A festvox label file: after the line "#", lines of `end_s color phone`; a phone begins where the last ended."""
    phones, start_ms = [], 0
    for line in label_file.read_text().partition("#\n")[2].splitlines():
        end_s, _, phone = line.split()
        end_ms = round(1000 * float(end_s))
        phones.append(AlignmentItem(phone, start=start_ms / 1000, duration=(end_ms - start_ms) / 1000))
        start_ms = end_ms
    return phones


def _cut(name: str, audio: Path, *, num_samples: int, text: str, language: str, speaker: str) -> MonoCut:
    duration_s = num_samples / SAMPLE_RATE_HZ
    source = AudioSource(type="file", channels=[0], source=str(audio))
    return MonoCut(
        id=name, start=0.0, duration=duration_s, channel=0,
        recording=Recording(name, [source], SAMPLE_RATE_HZ, num_samples, duration_s),
        supervisions=[SupervisionSegment(name, name, 0.0, duration_s, text=text, language=language, speaker=speaker)],
    )  # fmt: skip


def _decode_g722(path: Path) -> np.ndarray:
    """Samples (S,) int16 of a headerless G.722 file: 16 kHz, mono, two samples a byte."""
    try:
        import av
    except ImportError:
        raise SystemExit("decoding G.722 needs PyAV: pip install av") from None
    with av.open(str(path), format="g722") as container:
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


def _write_ogg(samples: np.ndarray, path: Path) -> int:
    """Encode (S,) samples; return S."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, format="OGG", subtype="VORBIS") as file:
        for start in range(0, len(samples), SAMPLE_RATE_HZ):  # libsndfile overflows its stack in one long write
            file.write(samples[start : start + SAMPLE_RATE_HZ])
    return len(samples)


def _copy_license(unpacked: Path, path: Path, *, name: str) -> None:
    """Put the text of licence `name` from the package's Debian copyright file at `path`."""
    (copyright_file,) = unpacked.glob("usr/share/doc/*/copyright")
    text = re.search(rf"^License: {re.escape(name)}\n((?: .*\n)+)", copyright_file.read_text("utf-8"), re.MULTILINE)
    assert text is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (line[1:].rstrip() for line in text[1].splitlines())
    path.write_text("".join("\n" if line == "." else f"{line}\n" for line in lines), encoding="utf-8")


def _unpack(packages: Path, name: str, *, sha256: str, to: Path) -> None:
    found = sorted(packages.glob(f"{name}_*.deb"))
    if len(found) != 1:
        raise SystemExit(f"{packages}: {len(found)} files {name}_*.deb, expected one; --download fetches them")
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != sha256:
        print(f"{found[0].name} is another version than the one the committed corpus was made from: results may differ")
    subprocess.run(["dpkg-deb", "-x", str(found[0]), str(to)], check=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manifests.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the corpus")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--packages", type=Path, help="folder with the three .deb files")
    source.add_argument("--download", action="store_true", help="fetch the .deb files with apt-get download")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        if options.download:
            subprocess.run(["apt-get", "download", *PACKAGES], cwd=scratch, check=True)
        build(options.packages or Path(scratch), output=options.output)


if __name__ == "__main__":
    main()
