"""Span masks against torchaudio's: how much, in what pieces, how fast; and what keys them."""

import time

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from torchaudio.models.wav2vec2.components import _compute_mask_indices

from core.seeding import generator
from core.speech.masking import MaskConfig, span_mask

HUBERT = MaskConfig()


def ours(num_rows: int, num_frames: int, *, position: int, config: MaskConfig = HUBERT) -> np.ndarray:
    """(B, T) bool."""
    masked = span_mask(np.full(num_rows, num_frames), config=config, rng=generator(0, "mask", position))
    is_masked = np.zeros((num_rows, num_frames), bool)
    np.put_along_axis(is_masked, masked, True, axis=1)
    assert is_masked.sum() == masked.size, "no frame twice"
    return is_masked


def theirs(num_rows: int, num_frames: int) -> np.ndarray:
    padding = torch.zeros(num_rows, num_frames, dtype=torch.bool)
    return _compute_mask_indices((num_rows, num_frames), padding, 0.8, 10, min_masks=2).numpy()


def run_lengths(is_masked: np.ndarray) -> np.ndarray:
    """Lengths of the masked stretches of all rows."""
    padded = np.pad(is_masked, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(padded, axis=1)
    return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]


@pytest.mark.parametrize(("num_frames", "batches"), [(99, 600), (499, 200), (749, 150)])
def test_the_law_is_torchaudios(num_frames: int, batches: int) -> None:
    torch.manual_seed(0)
    rows = 4
    own = [ours(rows, num_frames, position=number) for number in range(4 * batches)]
    other = [theirs(rows, num_frames) for _ in range(batches)]
    for mask in own + other:
        assert len(set(mask.sum(axis=1).tolist())) == 1, "every row has as many masked frames"
    assert abs(np.mean(own) - np.mean(other)) <= 0.005
    bins = [1, 5, 9, 10, 11, 13, 16, 20, 25, 32, 1000]
    counts = [np.histogram(np.concatenate([run_lengths(mask) for mask in masks]), bins)[0] for masks in (own, other)]
    table = np.array(counts)[:, np.min(counts, axis=0) >= 5]
    assert chi2_contingency(table).pvalue > 1e-3
    edge = [np.mean(masks, axis=(0, 1))[:9] for masks in (own, other)]  # the beginning is masked less
    assert np.abs(edge[0] - edge[1]).max() < 0.12


def test_rows_of_different_length_have_as_many_masked_frames_within_them() -> None:
    num_frames = np.array([300, 50, 120, 12])
    masked = span_mask(num_frames, config=HUBERT, rng=generator(0, "mask"))
    assert masked.shape[0] == 4 and 10 <= masked.shape[1] <= 12
    assert (masked < num_frames[:, None]).all() and (np.diff(masked, axis=1) > 0).all()


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 10, 11, 12, 21])
def test_short_rows_are_masked_as_torchaudios(num_frames: int) -> None:
    torch.manual_seed(0)
    own = np.mean([ours(1, num_frames, position=number) for number in range(400)])
    other = np.mean([theirs(1, num_frames) for _ in range(400)])
    assert abs(own - other) < 0.06


def test_the_key_makes_the_mask() -> None:
    assert np.array_equal(ours(4, 200, position=3), ours(4, 200, position=3))
    assert not np.array_equal(ours(4, 200, position=3), ours(4, 200, position=4))


def test_other_shares_and_lengths() -> None:
    """The channels of a base model in fine-tuning."""
    torch.manual_seed(0)
    config = MaskConfig(probability=0.5, length=64, min_spans=1)
    own = np.mean([ours(2, 768, position=number, config=config) for number in range(300)])
    padding = torch.zeros(2, 768, dtype=torch.bool)
    other = [_compute_mask_indices((2, 768), padding, 0.5, 64, min_masks=1).numpy() for _ in range(300)]
    assert own == pytest.approx(np.mean(other), abs=0.01)


def test_it_is_10_times_as_fast() -> None:
    def cpu_s(draw: object) -> float:
        begin = time.process_time()
        draw()  # type: ignore[operator]
        return time.process_time() - begin

    fastest = min(cpu_s(lambda: ours(32, 749, position=0)) for _ in range(5))
    assert min(cpu_s(lambda: theirs(32, 749)) for _ in range(2)) >= 10 * fastest
