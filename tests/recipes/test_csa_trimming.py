"""Trimming against librosa's definition as a loop over frames, and on real recordings."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.csa_stage1.trimming import trimmed

ENGLISH = Path(__file__).parents[2] / "manifests" / "demo" / "english"


def reference(samples: np.ndarray, top_db: float) -> tuple[int, int]:
    """librosa.effects.trim(y, top_db=..., ref=np.max, frame_length=2048, hop_length=512), frame by frame."""
    padded = np.concatenate([np.zeros(1024), samples, np.zeros(1024)])
    rms = []
    for frame in range(1 + (len(padded) - 2048) // 512):
        rms.append(np.sqrt(np.mean(padded[512 * frame : 512 * frame + 2048] ** 2)))
    power = np.square(rms)
    loudness = 10 * np.log10(np.maximum(1e-10, power)) - 10 * np.log10(max(1e-10, power.max()))
    loud = [frame for frame, one in enumerate(loudness) if one > -top_db]
    return 512 * loud[0], min(len(samples), 512 * (loud[-1] + 1))


@pytest.mark.parametrize("top_db", [20.0, 40.0, 60.0])
def test_it_cuts_where_librosa_cuts(top_db: float) -> None:
    cuts = []
    for path in sorted(ENGLISH.glob("a*.ogg")):
        samples = soundfile.read(path, dtype="float32")[0]
        cuts.append(trimmed(samples, top_db=top_db))
        assert cuts[-1] == reference(samples.astype(np.float64), top_db), path.name
    assert len(cuts) > 5 and (top_db == 60 or any(start for start, _ in cuts))


@pytest.mark.parametrize("length", [1, 511, 512, 513, 2047, 2048, 5000])
def test_any_length_and_silence_around(length: int) -> None:
    rng = np.random.default_rng(length)
    samples = np.concatenate([np.zeros(3000), rng.normal(size=length), 1e-5 * rng.normal(size=4321)])
    assert trimmed(samples, top_db=60.0) == reference(samples, 60.0)


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(4000)])
def test_nothing_is_left_of_digital_silence(samples: np.ndarray) -> None:
    assert trimmed(samples, top_db=60.0) == (0, 0)
