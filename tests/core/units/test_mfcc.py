"""MFCC-39 against torchaudio in both conventions; padding; and the frames that HuBERT's labels are taken from."""

import numpy as np
import pytest
import torch
import torchaudio.functional as torchaudio_functional
from torch import Tensor
from torchaudio.compliance import kaldi
from torchaudio.transforms import MFCC

from core.models.hubert.config import HubertConfig
from core.units.mfcc import Convention, Mfcc, differences
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics

CONVENTIONS: list[Convention] = ["torchaudio", "kaldi"]


def speech(num_samples: int, *, seed: int = 0) -> Tensor:
    """Noise that swells, over a quiet beginning: part of it lies more than 80 dB below the loudest."""
    noise = torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))
    return 0.3 * noise * torch.linspace(0, 1, num_samples) ** 6


def reference(audio: Tensor, convention: Convention) -> Tensor:
    """(T, 39) by torchaudio, as the predecessor and fairseq call it."""
    if convention == "torchaudio":
        cepstra = MFCC(16000, n_mfcc=13, melkwargs={"n_fft": 400, "hop_length": 160, "center": False})(audio[None])
    else:
        cepstra = kaldi.mfcc(audio[None], sample_frequency=16000, use_energy=False).T[None]
    first = torchaudio_functional.compute_deltas(cepstra)
    return torch.cat([cepstra, first, torchaudio_functional.compute_deltas(first)], dim=1)[0].T


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("num_samples", [400, 560, 16000, 33333])
def test_features_are_torchaudios(convention: Convention, num_samples: int) -> None:
    audio = speech(num_samples)
    features, counts = Mfcc(convention)(audio[None], torch.tensor([num_samples]))
    expected = reference(audio, convention)
    assert counts.tolist() == [len(expected)] == [1 + (num_samples - 400) // 160]
    assert features.shape == (1, len(expected), 39)
    assert_close(features[0], expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("padding", [0.0, 9.0, float("nan")])
def test_what_follows_an_utterance_changes_nothing(convention: Convention, padding: float) -> None:
    lengths = [5000, 3210, 400, 399, 0]
    batch = torch.full((5, 6000), padding)
    for row, length in enumerate(lengths):
        batch[row, :length] = speech(length, seed=row)
    features, counts = Mfcc(convention)(batch, torch.tensor(lengths))
    assert counts.tolist() == [29, 18, 1, 0, 0]
    for row, length in enumerate(lengths):
        if length >= 400:
            alone, _ = Mfcc(convention)(batch[row : row + 1, :length], torch.tensor([length]))
            assert_close(features[row, : counts[row]], alone[0], rel=2e-6)
        assert not features[row, counts[row] :].any()


def test_every_second_frame_is_a_frame_of_hubert() -> None:
    samples = np.arange(400, 4000)
    mfcc_frames = 1 + (samples - 400) // 160
    assert np.array_equal(-(-mfcc_frames // 2), HubertConfig().output_lengths(samples))


def test_differences_by_loops() -> None:
    x = torch.randn(1, 7, 2)
    found = differences(x, torch.tensor([6]))[0, :6]
    for t in range(6):
        at = [x[0, min(max(t + n, 0), 5)] for n in (-2, -1, 0, 1, 2)]
        torch.testing.assert_close(found[t], (-2 * at[0] - at[1] + at[3] + 2 * at[4]) / 10)
