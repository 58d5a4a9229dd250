"""Speed of features and augmentation: our log-mel against torchaudio's and lhotse's, and what a worker does besides.

    python -m tests.bench.features [--rounds 15] [--threads 1]

Prints markdown. All cases run interleaved in this process; a ratio is the median over rounds of two times taken one
after the other, so other work on the machine weighs on both of its sides.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn

from core.seeding import generator
from core.speech.audio import read_audio
from core.speech.augment import Augment, AugmentConfig, SpecAugmentConfig, spec_augment
from core.speech.features import FeatureConfig, LogMel

RATE, SECONDS = 16000, 10
Case = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for rows in (1, 8):
        times = interleaved(feature_cases(rows), rounds=arguments.rounds)
        ours = times["LogMel, normalized"]
        print(
            f"\n{rows} x {SECONDS} s, {arguments.threads} thread(s) | real-time factor | time / ours\n--- | --- | ---"
        )
        for name, seconds in times.items():
            ratio = statistics.median(other / own for other, own in zip(seconds, ours, strict=True))
            print(f"{name} | {statistics.median(seconds) / rows / SECONDS:.6f} | {ratio:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        times = interleaved(worker_cases(Path(folder)), rounds=arguments.rounds)
    print(f"\na worker's stages, 1 x {SECONDS} s | real-time factor\n--- | ---")
    for name, seconds in times.items():
        print(f"{name} | {statistics.median(seconds) / SECONDS:.6f}")


def interleaved(cases: Mapping[str, Case], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            case()  # not timed: it warms the caches that the case before has filled with its own
            start = time.perf_counter()
            case()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def feature_cases(rows: int) -> dict[str, Case]:
    audio = 0.1 * torch.randn(rows, RATE * SECONDS)
    lengths = torch.full((rows,), RATE * SECONDS)
    normalized, plain = LogMel(FeatureConfig()), LogMel(FeatureConfig(normalize="none"))
    cases: dict[str, Case] = {
        "LogMel, normalized": lambda: normalized(audio, lengths),
        "a LogMel made anew, for one frame": lambda: LogMel(FeatureConfig())(audio[:, :1], lengths.clamp(max=1)),
        "the same LogMel, for one frame": lambda: normalized(audio[:, :1], lengths.clamp(max=1)),
        "LogMel": lambda: plain(audio, lengths),
    }
    try:
        from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

        rival = nn.Sequential(
            MelSpectrogram(RATE, n_fft=400, win_length=400, hop_length=160, n_mels=80), AmplitudeToDB()
        )
        cases["torchaudio MelSpectrogram + AmplitudeToDB"] = lambda: rival(audio)
    except (ImportError, OSError) as error:
        print(f"without torchaudio: {error}")
    from lhotse import Fbank

    fbank, arrays = Fbank(), list(audio.numpy())
    cases["lhotse Fbank"] = lambda: fbank.extract_batch(arrays, sampling_rate=RATE)
    return cases


def worker_cases(folder: Path) -> dict[str, Case]:
    samples = (0.1 * np.random.default_rng(0).standard_normal(RATE * SECONDS)).astype(np.float32)
    features = torch.randn(SECONDS * 100, 80)
    for suffix in ("flac", "ogg"):
        soundfile.write(folder / f"a.{suffix}", samples, RATE)
    soundfile.write(folder / "44k.flac", np.resize(samples, 44100 * SECONDS), 44100)

    def augmented(config: AugmentConfig) -> Case:
        augment = Augment(config, sample_rate_hz=RATE)
        return lambda: augment(samples, rng=generator(0, "bench"))

    return {
        "decode FLAC": lambda: read_audio(folder / "a.flac", sample_rate_hz=RATE),
        "decode Ogg Vorbis": lambda: read_audio(folder / "a.ogg", sample_rate_hz=RATE),
        "decode FLAC, 44.1 kHz to 16 kHz": lambda: read_audio(folder / "44k.flac", sample_rate_hz=RATE),
        "speed 0.9": augmented(AugmentConfig(speed_factors=[0.9])),
        "colored Gaussian noise": augmented(AugmentConfig(noise_probability=1.0)),
        "noise from clips": augmented(AugmentConfig(noise_probability=1.0, noise_folder=str(folder))),
        "SpecAugment": lambda: spec_augment(features, config=SpecAugmentConfig(), rng=generator(0, "bench")),
    }


if __name__ == "__main__":
    main()
