"""Corpora in their real layouts, a few clips each, made from the speech that ships with Baton."""

import json
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut

from core.data.index import ManifestIndex

DEMO = Path(__file__).parents[2] / "manifests" / "demo"
SAMPLE_RATE_HZ = 16_000


def demo_cuts(num: int, *, part: str = "english_dev") -> list[MonoCut]:
    index = ManifestIndex.open(DEMO / f"{part}.jsonl")
    return [index.read(row) for row in range(num)]


def samples_of(cut: MonoCut) -> np.ndarray:
    return soundfile.read(cut.recording.sources[0].source, dtype="float32")[0]


def librispeech(folder: Path, *, parts: dict[str, int]) -> dict[str, dict[str, tuple[str, int]]]:
    """LibriSpeech/PART/84/121123/84-121123-0000.flac and 84-121123.trans.txt; part -> name -> (text, samples)."""
    expected = {}
    cuts = iter(demo_cuts(sum(parts.values())))
    for part, num in parts.items():
        chapter = folder / "LibriSpeech" / part / "84" / "121123"
        chapter.mkdir(parents=True)
        expected[part] = {}
        for number in range(num):
            cut, name = next(cuts), f"84-121123-{number:04d}"
            audio = samples_of(cut)
            soundfile.write(chapter / f"{name}.flac", audio, SAMPLE_RATE_HZ)
            expected[part][name] = (cut.supervisions[0].text.upper(), len(audio))
        lines = "".join(f"{name} {text}\n" for name, (text, _) in reversed(expected[part].items()))
        (chapter / "84-121123.trans.txt").write_text(lines)
    return expected


def librilight(folder: Path) -> dict[str, dict[str, tuple[str, int]]]:
    """librispeech_finetuning/{1h/{0..5},9h}/{clean,other}/SPEAKER/BOOK/*.flac; folder -> name -> (text, samples)."""
    expected: dict[str, dict[str, tuple[str, int]]] = {}
    cuts = iter(demo_cuts(28))
    for number, name in enumerate([*(f"1h/{fold}" for fold in range(6)), "9h"]):
        expected[name] = {}
        for half, speaker in (("clean", number + 10), ("other", number + 20)):
            book = f"{speaker}-{number + 500}"
            chapter = folder / "librispeech_finetuning" / name / half / str(speaker) / str(number + 500)
            chapter.mkdir(parents=True)
            utterances = {}
            for audio_id in (f"{book}-0003", f"{book}-0012"):
                cut = next(cuts)
                audio = samples_of(cut)
                soundfile.write(chapter / f"{audio_id}.flac", audio, SAMPLE_RATE_HZ)
                utterances[audio_id] = (cut.supervisions[0].text.upper(), len(audio))
            lines = "".join(f"{audio_id} {text}\n" for audio_id, (text, _) in utterances.items())
            (chapter / f"{book}.trans.txt").write_text(lines)
            expected[name] |= utterances
    return expected


def mls(folder: Path, *, ending: str) -> dict[str, dict[str, tuple[str, int]]]:
    """mls_polish/SPLIT/audio/8758/8338/8758_8338_000000.flac (or .opus), transcripts.txt, metainfo.txt."""
    language = folder / ("mls_polish_opus" if ending == "opus" else "mls_polish")
    expected = {}
    cuts = iter(demo_cuts(6))
    for split in ("train", "dev", "test"):
        book = language / split / "audio" / "8758" / "8338"
        book.mkdir(parents=True)
        expected[split] = {}
        for number in range(2):
            cut, name = next(cuts), f"8758_8338_{number:06d}"
            audio = samples_of(cut)
            if ending == "opus":
                soundfile.write(book / f"{name}.opus", audio, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
            else:
                soundfile.write(book / f"{name}.flac", audio, SAMPLE_RATE_HZ)
            expected[split][name] = (cut.supervisions[0].text.lower(), len(audio))
        lines = "".join(f"{name}\t{text}\n" for name, (text, _) in expected[split].items())
        (language / split / "transcripts.txt").write_text(lines)
    header = "SPEAKER|GENDER|PARTITION|MINUTES|BOOK ID|TITLE|CHAPTER\n"
    (language / "metainfo.txt").write_text(f"{header}8758  |  F  |  train  |  2.0  |  8338  |  Title  |  Chapter\n")
    return expected


GIGASPEECH_TEXTS = [
    ("AS THEY'RE LEAVING <COMMA> CAN KASH PULL ZAHRA ASIDE REALLY QUICKLY <QUESTIONMARK>", ["{XL}", "{XS}"]),
    ("<MUSIC>", ["{XL}", "{XS}"]),
    ("NO <EXCLAMATIONPOINT>", ["{XL}"]),
    ("<NOISE>", ["{XL}"]),
    ("UH <PERIOD>", ["{XL}", "{XS}"]),
]


def gigaspeech(folder: Path) -> dict[str, tuple[str, float, np.ndarray]]:
    """GigaSpeech.json and audio/podcast/P0000/POD0000000001.opus, one long recording of all utterances.

    Returns sid -> (text, begin_s, samples) of all segments, garbage included.
    """
    (folder / "audio" / "podcast" / "P0000").mkdir(parents=True)
    clips = [samples_of(cut) for cut in demo_cuts(len(GIGASPEECH_TEXTS))]
    path = "audio/podcast/P0000/POD0000000001.opus"
    whole = np.concatenate(clips)
    soundfile.write(folder / path, whole, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
    segments, expected, begin_s = [], {}, 0.0
    for number, ((text, subsets), clip) in enumerate(zip(GIGASPEECH_TEXTS, clips, strict=True)):
        sid, end_s = f"POD0000000001_S{number:07d}", begin_s + len(clip) / SAMPLE_RATE_HZ
        segments.append({"sid": sid, "speaker": "N/A", "begin_time": begin_s, "end_time": end_s, "text_tn": text,
                         "subsets": subsets})  # fmt: skip
        expected[sid] = (text, begin_s, clip)
        begin_s = end_s
    audio = {"title": "A title", "url": "https://example.org", "path": path, "aid": "POD0000000001",
             "source": "podcast", "codec": "opus", "channels": 1, "md5": "0" * 32, "sample_rate": SAMPLE_RATE_HZ,
             "duration": len(whole) / SAMPLE_RATE_HZ, "category": "N/A", "speaker": "N/A", "size": 1,
             "subsets": ["{XL}", "{XS}"], "segments": segments}  # fmt: skip
    (folder / "GigaSpeech.json").write_text(json.dumps({"dataset": "GigaSpeech", "audios": [audio]}))
    return expected
