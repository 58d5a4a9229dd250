"""Speech of a machine with ten phones: what is said is known to the sample, how it sounds changes with every clip.

A phone is pulses or noise through three resonators; which phone follows which is a Markov chain, so that the context
tells what is hidden. Every clip has a speaker (pitch, length of the vocal tract), a microphone (tilt, loudness) and
noise of its own: MFCC hear these as well as the phones, so that their clusters are imperfect.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem
from scipy.signal import lfilter

from core.data.index import write_manifest

RATE_HZ, NUM_PHONES, BANDWIDTH_HZ, EDGE_S = 16000, 24, 120.0, 0.008


class Phone(NamedTuple):
    resonances_hz: tuple[float, float, float]
    pulsed: float  # how much of the source is pulses; the rest is noise
    loudness: float


PHONES = {
    "a": Phone((750, 1250, 2500), 1.0, 1.0),
    "i": Phone((290, 2250, 3000), 1.0, 0.8),
    "u": Phone((320, 800, 2250), 1.0, 0.8),
    "e": Phone((500, 1800, 2550), 1.0, 0.9),
    "o": Phone((500, 900, 2450), 1.0, 0.9),
    "m": Phone((250, 1050, 2150), 1.0, 0.4),
    "l": Phone((360, 1350, 2800), 1.0, 0.5),
    "s": Phone((4300, 5600, 6900), 0.0, 0.4),
    "x": Phone((1900, 2900, 4300), 0.0, 0.4),
    "z": Phone((270, 4200, 6300), 0.5, 0.4),
}
PROBABILITIES = (0.6, 0.3, 0.1)  # of the successors of a phone

Grammar = dict[str, list[str]]


def write_speech(folder: Path, *, num_clips: int, seed: int, grammar: Grammar) -> Path:
    """Clips of about 2.3 s under `folder`, and beside it their manifest, with phone alignments."""
    folder.mkdir(parents=True)
    cuts = []
    for number in range(num_clips):
        samples, phones = clip(grammar, np.random.default_rng((seed, number)))
        name = f"{folder.name}-{number}"
        soundfile.write(folder / f"{name}.wav", samples, RATE_HZ, subtype="PCM_16")
        recording = Recording.from_file(folder / f"{name}.wav", recording_id=name)
        text = " ".join(phone.symbol for phone in phones)
        spoken = SupervisionSegment(name, name, 0.0, recording.duration, text=text, alignment={"phone": phones})
        cuts.append(MonoCut(name, 0.0, recording.duration, 0, [spoken], recording=recording))
    manifest = folder.with_suffix(".jsonl")
    write_manifest(cuts, manifest)
    return manifest


def random_grammar(seed: int) -> Grammar:
    """What may follow each phone, the likeliest first; every phone is the likeliest after one other."""
    rng = np.random.default_rng(seed)
    ring = rng.permutation(list(PHONES)).tolist()
    grammar = {}
    for phone, likeliest in zip(ring, ring[1:] + ring[:1], strict=True):
        others = [other for other in PHONES if other not in (phone, likeliest)]
        grammar[phone] = [likeliest, *rng.choice(others, len(PROBABILITIES) - 1, replace=False).tolist()]
    return grammar


def clip(grammar: Grammar, rng: np.random.Generator) -> tuple[np.ndarray, list[AlignmentItem]]:
    """(S,) float32 and when each phone is said."""
    tract, pitch_hz = rng.uniform(0.85, 1.18), rng.uniform(85, 240)
    symbol = rng.choice(list(PHONES)).item()
    parts: list[np.ndarray] = []
    said, start = [], 0
    for _ in range(NUM_PHONES):
        num_samples = int(rng.uniform(0.06, 0.13) * RATE_HZ)
        parts.append(_sound(PHONES[symbol], num_samples, tract=tract, pitch_hz=pitch_hz, rng=rng))
        said.append(AlignmentItem(symbol, round(start / RATE_HZ, 5), round(num_samples / RATE_HZ, 5)))
        start += num_samples
        symbol = rng.choice(grammar[symbol], p=PROBABILITIES).item()
    samples = _through_microphone(np.concatenate(parts), rng)
    return samples.clip(-0.99, 0.99).astype(np.float32), said


def _sound(phone: Phone, num_samples: int, *, tract: float, pitch_hz: float, rng: np.random.Generator) -> np.ndarray:
    pulses = np.zeros(num_samples)
    pulses[:: round(RATE_HZ / (pitch_hz * rng.uniform(0.9, 1.1)))] = 8.0
    sound = phone.pulsed * pulses + (1 - 0.9 * phone.pulsed) * rng.standard_normal(num_samples)
    radius = np.exp(-np.pi * BANDWIDTH_HZ / RATE_HZ)
    for resonance_hz in phone.resonances_hz:
        angle = 2 * np.pi * min(7600.0, resonance_hz * tract * rng.normal(1.0, 0.03)) / RATE_HZ
        sound = lfilter([1.0 - radius], [1.0, -2 * radius * np.cos(angle), radius**2], sound)
    sound *= phone.loudness * 10 ** (rng.normal(0, 3) / 20) / np.sqrt(np.mean(sound**2))
    edge = np.linspace(0.2, 1, int(EDGE_S * RATE_HZ))
    sound[: len(edge)] *= edge
    sound[-len(edge) :] *= edge[::-1]
    return np.asarray(sound)


def _through_microphone(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    speech = lfilter([1.0, rng.uniform(-0.7, 0.7)], [1.0], speech)
    noise = lfilter([1.0], [1.0, rng.uniform(-0.9, 0.0)], rng.standard_normal(len(speech)))
    noise_db = -rng.uniform(5, 20)
    mixed = speech / np.sqrt(np.mean(speech**2)) + noise / noise.std() * 10 ** (noise_db / 20)
    return np.asarray(mixed * 0.05 * 10 ** (rng.uniform(-10, 10) / 20))
