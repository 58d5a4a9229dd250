"""Speed of reading crops of 1 to 3 s: by seeking in FLAC and from the PCM cache, against the whole file, then sliced.

    python -m tests.bench.crops [--rounds 15] [--utterances 48]

Prints markdown. The rival is what the predecessor does: it decodes each file whole and keeps the crop. Recorded speech:
clips of the demo corpus joined to utterances as long as most of LibriSpeech's. All ways read the same crops,
interleaved in this process; a ratio is the median over rounds, with the least and the most.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from core.data.index import ManifestIndex, write_records
from core.data.pcm_cache import PcmCache, write_cache
from core.data.reading import place_of, read_cut, read_place
from core.samplers.plan import Draw
from core.seeding import generator
from core.text.tokenization import ByteTokenizer
from recipes.csa_stage1.paired_speech import PairConfig, PairedSpeech
from recipes.csa_stage1.word_crops import CropSampler, WordCropConfig

RATE = 16000
DEMO = Path(__file__).parents[2] / "manifests" / "demo"
Case = Callable[[], object]
WHOLE = "whole FLAC, then slice (the predecessor)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--utterances", type=int, default=48)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        index = joined_utterances(Path(folder), num=arguments.utterances)
        seconds = index.durations_s
        print(
            f"# Crops of 1 to 3 s\n\n{len(index)} utterances of {seconds.min():.1f} to {seconds.max():.1f} s "
            f"({seconds.mean():.1f} on average), 16-bit FLAC"
        )
        show("reading", reading_cases(index), arguments)
        show("a pair: reading, words, crop, tokens, normalizing", pair_cases(index), arguments)


def show(what: str, cases: Mapping[str, Case], arguments: argparse.Namespace) -> None:
    times = interleaved(cases, rounds=arguments.rounds)
    print(f"\n{what} | crops a second | times the predecessor (least to most)\n--- | --- | ---")
    for name, seconds in times.items():
        ratios = [rival / own for rival, own in zip(times[WHOLE], seconds, strict=True)]
        speed = arguments.utterances / statistics.median(seconds)
        print(f"{name} | {speed:,.0f} | {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def interleaved(cases: Mapping[str, Case], *, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each case in each round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            start = time.process_time()
            case()
            if number:
                times[name].append(time.process_time() - start)
    return times


def joined_utterances(folder: Path, *, num: int) -> ManifestIndex:
    """Prompts of one speaker one after another until there are 14 s, as FLAC, with their cache."""
    source = ManifestIndex.open(DEMO / "english_train.jsonl")
    rng = generator(0, "bench.crops")
    records: list[dict[str, Any]] = []
    clips: list[np.ndarray] = []
    while len(records) < num:
        parts: list[np.ndarray] = []
        texts: list[str] = []
        while sum(map(len, parts)) < 14 * RATE:
            cut = source.read(int(rng.integers(len(source))))
            if cut.duration < 3:
                parts.append(read_cut(cut, sample_rate_hz=RATE).samples)
                texts.append(cut.supervisions[0].text)
        name, samples = f"utterance{len(records):04d}", np.concatenate(parts)
        soundfile.write(folder / f"{name}.flac", samples, RATE, subtype="PCM_16")
        clips.append(soundfile.read(folder / f"{name}.flac", dtype="float32")[0])
        duration_s = len(samples) / RATE
        audio = {"type": "file", "channels": [0], "source": str(folder / f"{name}.flac")}
        recording = {"id": name, "sources": [audio], "sampling_rate": RATE, "num_samples": len(samples),
                     "duration": duration_s, "channel_ids": [0]}  # fmt: skip
        said = {"id": name, "recording_id": name, "start": 0.0, "duration": duration_s, "text": " ".join(texts)}
        records.append({"id": name, "start": 0.0, "duration": duration_s, "channel": 0, "supervisions": [said],
                        "recording": recording, "type": "MonoCut"})  # fmt: skip
    write_records(records, folder / "joined.jsonl")
    write_cache(folder / "joined.jsonl", clips, sample_rate_hz=RATE)
    return ManifestIndex.open(folder / "joined.jsonl")


def reading_cases(index: ManifestIndex) -> dict[str, Case]:
    """The samples alone: one crop of each utterance, the same for all."""
    places = [place_of(index.record(row)) for row in range(len(index))]
    cache = PcmCache.open(index)
    rng = generator(1, "bench.crops")
    crops = []
    for place in places:
        num = int(rng.integers(RATE, 3 * RATE))
        crops.append((int(rng.integers(0, round(place.duration_s * RATE) - num)), num))
    parts = [
        place._replace(start_s=start / RATE, duration_s=num / RATE)
        for place, (start, num) in zip(places, crops, strict=True)
    ]

    def whole() -> list[np.ndarray]:
        return [
            soundfile.read(place.path, dtype="float32")[0][start : start + num]
            for place, (start, num) in zip(places, crops, strict=True)
        ]

    def sought() -> list[np.ndarray]:
        return [read_place(part) for part in parts]

    def cached() -> list[np.ndarray]:
        return [cache.read(row, start=start, num=num) for row, (start, num) in enumerate(crops)]

    for one, other, third in zip(whole(), sought(), cached(), strict=True):
        assert np.array_equal(one, other) and np.array_equal(one, third), "all ways give the same samples"
    return {WHOLE: whole, "FLAC, seek": sought, "PCM cache": cached}


def pair_cases(index: ManifestIndex) -> dict[str, Case]:
    """All that a worker does for a pair; the predecessor's way with its reading only, so it is flattered."""
    draws = [Draw(0, 0, row) for row in range(len(index))]
    crops = CropSampler(WordCropConfig(), seed=0)

    def pairs(cache: PcmCache | None) -> PairedSpeech:
        return PairedSpeech([index], [cache], PairConfig(), crops, ByteTokenizer(), max_tokens=512)

    files, cached = pairs(None), pairs(PcmCache.open(index))
    return {
        WHOLE: reading_cases(index)[WHOLE],
        "FLAC, seek": lambda: files[draws],
        "PCM cache": lambda: cached[draws],
    }


if __name__ == "__main__":
    main()
