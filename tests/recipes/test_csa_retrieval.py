"""Retrieval against sorting by numpy; baselines against what they should find; test_pairs_on_ranks.py has the ranks."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.distributed import Ranks
from core.losses.contrastive import PairEmbeddings, contrastive_loss
from recipes.csa_stage1.retrieval import (
    LengthModel,
    bootstrap_interval,
    chance_scores,
    find_places,
    gallery_loss,
    gather_in_order,
    nearest_in_length,
    place_scores,
)

ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))


def pairs(num_pairs: int, *, noise: float = 1.0, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(num_pairs)
    text = rng.standard_normal((num_pairs, dim))
    speech = text + noise * rng.standard_normal((num_pairs, dim))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (speech, text)]
    return unit[0].astype(np.float32), unit[1].astype(np.float32)


def sorted_places(queries: np.ndarray, gallery: np.ndarray) -> list[int]:
    """By argsort: where the own row stands in each query's order."""
    orders = (-(queries.astype(np.float64) @ gallery.astype(np.float64).T)).argsort(axis=1)
    return [int(np.flatnonzero(order == q)[0]) + 1 for q, order in enumerate(orders)]


@pytest.mark.parametrize("num_pairs", [1, 7, 1100])
def test_places_are_those_of_sorting(num_pairs: int) -> None:
    speech, text = pairs(num_pairs)
    for one, other in ((speech, text), (text, speech)):
        assert find_places(one, other).tolist() == sorted_places(one, other)


def test_scores_are_those_of_the_sorted_lists() -> None:
    speech, text = pairs(200)
    expected = np.array(sorted_places(speech, text))
    scores = place_scores(find_places(speech, text))
    assert scores == {
        "r1": np.count_nonzero(expected == 1) / 200,
        "r5": np.count_nonzero(expected <= 5) / 200,
        "r10": np.count_nonzero(expected <= 10) / 200,
        "mrr": pytest.approx(sum(1 / place for place in expected) / 200),
        "median_rank": sorted(expected)[99] / 2 + sorted(expected)[100] / 2,
        "mean_rank": sum(expected) / 200,
    }
    assert 0.1 < scores["r1"] < scores["r5"] < scores["r10"] < 1


def test_a_model_that_gives_all_the_same_or_nothing_is_last() -> None:
    same = np.ones((6, 3), dtype=np.float32)
    assert find_places(same, same).tolist() == [6] * 6
    assert find_places(same * np.nan, same).tolist() == [6] * 6
    speech, text = pairs(6, noise=0.0)
    text[2] = np.nan
    assert find_places(speech, text).tolist() == [2, 2, 6, 2, 2, 2]


def test_equal_texts_and_candidates() -> None:
    speech, text = pairs(40, noise=1.5)
    keys = np.arange(40)
    keys[[3, 9, 30]] = 77
    similar = speech.astype(np.float64) @ text.astype(np.float64).T
    candidates = np.array([[j for j in range(40) if j % 4 == q % 4][:8] for q in range(40)])
    for chosen in (None, candidates):
        expected = []
        for q in range(40):
            among = range(40) if chosen is None else chosen[q]
            rivals = [j for j in among if j != q and keys[j] != keys[q]]
            expected.append(1 + sum(similar[q, j] >= similar[q, q] for j in rivals))
        assert find_places(speech, text, keys=keys, candidates=chosen).tolist() == expected
        assert max(expected) > 2


def test_chance_is_that_of_places_drawn_at_random() -> None:
    drawn = np.random.default_rng(0).integers(1, 101, 200_000)
    found, expected = place_scores(drawn), chance_scores(100)
    assert expected["r10"] == 0.1 and expected["mean_rank"] == 50.5
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.03)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(rng.random(150) < 0.3, seed=trial, num_samples=200) for trial in range(120)]
    held = np.mean([low <= 0.3 <= high for low, high in intervals])
    assert 0.88 < held < 0.99
    assert bootstrap_interval(np.arange(50.0), seed=3) == bootstrap_interval(np.arange(50.0), seed=3)


def test_the_loss_of_the_gallery_is_that_of_training() -> None:
    speech, text = pairs(30)
    keys = np.arange(30)
    keys[4] = keys[20]
    output = PairEmbeddings(
        F.normalize(torch.from_numpy(speech), dim=1), F.normalize(torch.from_numpy(text), dim=1), torch.tensor([2.0])
    )
    expected = contrastive_loss(output, text_keys=torch.from_numpy(keys), num_targets=30, group=None).loss_sum / 30
    assert gallery_loss(speech, text, scale=float(np.exp(2.0)), keys=keys) == pytest.approx(float(expected), rel=1e-5)


def test_the_length_model_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    num_chars = rng.integers(5, 90, 300)
    durations_s = 0.06 * num_chars + 0.4 + 0.1 * rng.standard_normal(300)
    model = LengthModel.fit(durations_s, num_chars)
    slope_s, offset_s = np.linalg.lstsq(np.stack([num_chars, np.ones(300)], 1), durations_s, rcond=None)[0]
    assert (model.slope_s, model.offset_s) == pytest.approx((slope_s, offset_s))


def test_length_alone_finds_some_texts_and_ties_are_broken_fairly() -> None:
    model = LengthModel(slope_s=0.1, offset_s=0.0)
    num_chars, durations_s = np.array([10, 20, 20, 30]), np.array([1.0, 2.0, 2.0, 2.4])
    # the third speech is as near to two texts of 20 characters, the last is nearer to both of them than to its own
    of_speech = model.recall(durations_s, num_chars, at=1, of="speech")
    assert of_speech.tolist() == [1.0, 0.5, 0.5, 0.0]
    assert model.recall(durations_s, num_chars, at=3, of="speech").tolist() == [1.0, 1.0, 1.0, 1.0]
    keys = np.array([1, 2, 2, 3])  # the texts of 20 characters are one text
    assert model.recall(durations_s, num_chars, at=1, of="speech", keys=keys).tolist() == [1.0, 1.0, 1.0, 0.0]
    assert model.recall(durations_s, num_chars, at=1, of="text").tolist() == [1.0, 0.5, 0.5, 1.0]


def test_the_gallery_of_like_lengths_takes_the_nearest_others() -> None:
    lengths = np.array([10, 50, 11, 12, 49, 30])
    assert nearest_in_length(lengths, 2).tolist() == [[2, 3], [4, 5], [0, 3], [2, 0], [1, 5], [3, 2]]
    keys = np.array([1, 2, 1, 3, 4, 5])
    assert nearest_in_length(lengths, 2, keys=keys)[0].tolist() == [3, 5]
    with pytest.raises(ValueError, match="5 others are more than the gallery of 6"):
        nearest_in_length(lengths, 5, keys=keys)


def test_like_lengths_take_the_length_models_advantage() -> None:
    rng = np.random.default_rng(0)
    num_chars = rng.integers(5, 90, 400)
    durations_s = 0.06 * num_chars + 0.4 + 0.15 * rng.standard_normal(400)
    model = LengthModel.fit(durations_s, num_chars)
    candidates = nearest_in_length(num_chars, 9)
    whole = model.recall(durations_s, num_chars, at=1, of="speech").mean() / (1 / 400)
    matched = model.recall(durations_s, num_chars, at=1, of="speech", candidates=candidates).mean() / (1 / 10)
    assert whole > 4
    assert matched < 1.6


def test_rows_come_in_order_and_missing_ones_are_named() -> None:
    rows = np.arange(12.0).reshape(6, 2)
    order = np.array([3, 0, 5, 1, 4, 2])
    assert np.array_equal(gather_in_order(ALONE, order, rows[order], num_rows=6), rows)
    with pytest.raises(ValueError, match="2 of 6 rows of the gallery are missing, the first is 1"):
        gather_in_order(ALONE, np.array([0, 2, 3, 5]), rows[:4], num_rows=6)
    with pytest.raises(ValueError, match="no rank has any of the 6 rows"):
        gather_in_order(ALONE, order[:0], rows[:0], num_rows=6)
