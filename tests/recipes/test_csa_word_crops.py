"""Crops around words: nothing is broken, lengths follow the law, and the seed's way is measured beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.data.index import ManifestIndex
from core.samplers.blend import Draws
from core.text.words import Words, guessed_words, words_of
from recipes.csa_stage1.word_crops import CropSampler, WordCropConfig, word_crop

DEMO = Path(__file__).parents[2] / "manifests" / "demo"
CROPS = CropSampler(WordCropConfig(), seed=7)


@pytest.fixture(scope="module")
def sentences() -> list[tuple[Words, float]]:
    """Real sentences with the times of their words, 4 to 16 s long."""
    index = ManifestIndex.open(DEMO / "russian_train.jsonl")
    return [(words_of(index.record(row)), float(index.durations_s[row])) for row in range(len(index))]


def draws(durations_s: np.ndarray, *, epoch: int = 0, source: int = 0) -> Draws:
    num = len(durations_s)
    return Draws(np.full(num, source), np.full(num, epoch), np.arange(num), durations_s.astype(np.float32), False)


def crops_of(sentences: list[tuple[Words, float]], num: int) -> list[tuple[Words, float, float, Any]]:
    """(words, duration, drawn length, crop) of so many draws over many epochs."""
    durations = np.array([duration for _, duration in sentences])
    found: list[tuple[Words, float, float, Any]] = []
    for epoch in range(-(-num // len(sentences))):
        drawn = draws(durations, epoch=epoch)
        lengths, places = CROPS.lengths_s(drawn, segment=0).tolist(), CROPS.places(drawn, segment=0).tolist()
        for (words, duration), length, place in zip(sentences, lengths, places, strict=True):
            crop = word_crop(words, duration_s=duration, length_s=length, place=place, max_s=3.0)
            found.append((words, duration, length, crop))
    return found[:num]


def test_ten_thousand_crops_break_no_word_and_follow_the_law(sentences: list[tuple[Words, float]]) -> None:
    crops = crops_of(sentences, 10_000)
    lengths, drawn, starts = [], [], []
    for words, duration, length, crop in crops:
        assert words.is_aligned and 0 <= crop.start_s < crop.end_s <= duration + 1e-9
        middles = (words.starts_s + words.ends_s) / 2
        inside = np.flatnonzero((middles >= crop.start_s) & (middles < crop.end_s))
        assert inside.tolist() == list(range(crop.first, crop.last + 1)), "the text is the words inside"
        for edge in (crop.start_s, crop.end_s):
            assert not ((words.starts_s < edge - 1e-9) & (edge + 1e-9 < words.ends_s)).any(), "a broken word"
        assert crop.end_s - crop.start_s <= 3.0 + 1e-9
        lengths.append(crop.end_s - crop.start_s)
        drawn.append(length)
        starts.append(crop.start_s / (duration - (crop.end_s - crop.start_s)))
    assert stats.kstest(drawn, stats.uniform(1, 2).cdf).pvalue > 0.01
    assert stats.kstest(lengths, stats.uniform(1, 2).cdf).statistic < 0.02
    assert np.abs(np.array(lengths) - drawn).mean() < 0.05
    assert stats.kstest(starts, stats.uniform(0, 1).cdf).statistic < 0.06


def test_the_predecessors_crops_break_nine_words_in_ten(sentences: list[tuple[Words, float]]) -> None:
    """Its slice: uniform length, uniform start, whatever is said there. The measure must see it."""
    rng = np.random.default_rng(0)
    broken = []
    for _ in range(30):
        for words, duration in sentences:
            length = rng.uniform(1, 3)
            start = rng.uniform(0, duration - length)
            edges = np.array([start, start + length])[:, None]
            broken.append(((words.starts_s + 1e-9 < edges) & (edges < words.ends_s - 1e-9)).any())
    assert 0.8 < np.mean(broken) < 0.99


@pytest.mark.parametrize("duration_s", [0.6, 1.0, 1.7, 2.99, 3.0, 3.01, 9.0])
def test_clips_shorter_than_the_longest_crop_follow_the_same_law(duration_s: float) -> None:
    """min(U(1, 3), d): whole with probability (3 - d) / 2, and no jump at 3 s."""
    lengths = CROPS.lengths_s(draws(np.full(10_000, duration_s)), segment=0)
    whole = np.clip((3 - duration_s) / 2, 0, 1)
    assert (lengths == np.float32(duration_s)).mean() == pytest.approx(whole, abs=0.015)
    cut = lengths[lengths < np.float32(duration_s)]
    if len(cut) > 100:
        assert stats.kstest(cut, stats.uniform(1, min(duration_s, 3) - 1).cdf).pvalue > 0.01


def test_the_draw_follows_from_seed_segment_source_epoch_and_row() -> None:
    durations = np.full(50, 20.0)

    def both(crops: CropSampler = CROPS, *, segment: int = 0, **place: int) -> np.ndarray:
        drawn = draws(durations, **place)
        return np.stack([crops.lengths_s(drawn, segment=segment), crops.places(drawn, segment=segment)])

    first = both()
    assert (first == both()).all()
    others = [both(CropSampler(WordCropConfig(), 8)), both(segment=1), both(epoch=1), both(source=1)]
    assert all((first != other).all() for other in others)
    assert abs(np.corrcoef(first[0], first[1])[0, 1]) < 0.5, "length and place are drawn apart"
    backwards = draws(durations)._replace(row=np.arange(50)[::-1])
    assert (CROPS.lengths_s(backwards, segment=0) == first[0, ::-1]).all(), "whatever else is in the batch"


WORDS = st.lists(st.tuples(st.floats(0, 1.5), st.floats(0.02, 5.0)), min_size=0, max_size=12)


@settings(max_examples=200, deadline=None)
@given(WORDS, st.floats(0, 2), st.floats(1, 3), st.floats(0, 0.999))
def test_any_words_give_whole_words_or_nothing(
    gaps: list[tuple[float, float]], rest: float, length: float, place: float
) -> None:
    ends = np.cumsum([gap + long for gap, long in gaps])
    starts = ends - [long for _, long in gaps]
    duration = (float(ends[-1]) if len(ends) else 0.5) + rest
    words = Words([str(number) for number in range(len(gaps))], starts, ends, True)
    crop = word_crop(words, duration_s=duration, length_s=min(length, duration), place=place, max_s=3.0)
    fitting = [long for _, long in gaps if long <= 3.0]
    if crop is None:
        assert not fitting or not gaps or not _near_fits(words, place, duration, min(length, duration))
        return
    assert crop.first <= crop.last and crop.end_s - crop.start_s <= 3.0 + 1e-9
    assert crop.start_s <= starts[crop.first] + 1e-9 and ends[crop.last] <= crop.end_s + 1e-9
    assert crop.first == 0 or ends[crop.first - 1] <= crop.start_s + 1e-9
    assert crop.last + 1 == len(gaps) or crop.end_s <= starts[crop.last + 1] + 1e-9


def _near_fits(words: Words, place: float, duration: float, length: float) -> bool:
    wanted = place * (duration - length)
    near = (words.ends_s > wanted - 6) & (words.starts_s < wanted + length + 6)
    return bool((near & (words.ends_s - words.starts_s <= 3.0)).any())


def test_words_come_from_the_alignment_and_keep_their_spelling() -> None:
    items = [["", 0.0, 0.2, None], ["PRESS", 0.2, 0.3, None], ["ONE", 0.6, 0.4, None], ["sil", 1.0, 0.5, None]]
    supervision = {"start": 0.0, "duration": 1.5, "text": "Press 1.", "alignment": {"word": items}}
    record = {"duration": 1.5, "supervisions": [supervision]}
    words = words_of(record)
    assert words.texts == ["Press", "1."] and words.is_aligned
    assert words.starts_s.tolist() == [0.2, 0.6] and words.ends_s.tolist() == [0.5, 1.0]
    assert words_of({**record, "supervisions": [{**supervision, "text": "Press the one."}]}).texts == ["PRESS", "ONE"]


def test_overlapping_and_outlying_words_are_put_in_order() -> None:
    items = [["b", 0.9, 0.4, None], ["a", 0.5, 0.6, None], ["c", 1.9, 0.4, None], ["d", 2.5, 0.1, None]]
    words = words_of({"duration": 2.0, "supervisions": [{"start": 0, "text": "", "alignment": {"word": items}}]})
    assert words.texts == ["a", "b", "c"]
    assert words.starts_s == pytest.approx([0.5, 1.0, 1.9]) and words.ends_s == pytest.approx([1.0, 1.3, 2.0])


def test_without_alignment_time_is_shared_by_letters() -> None:
    supervisions = [
        {"start": 4.0, "duration": 2.0, "text": "one"},
        {"start": 0.0, "duration": 4.0, "text": "a bcd ef"},
    ]
    words = words_of({"duration": 6.0, "supervisions": supervisions})
    assert words.texts == ["a", "bcd", "ef", "one"] and not words.is_aligned
    share = np.array([2, 4, 3]) / 9 * 4
    assert words.ends_s[:3] == pytest.approx(np.cumsum(share)) and words.ends_s[3] == 6.0
    assert guessed_words(["abc"], start_s=1.0, duration_s=2.0) == [(1.0, 3.0, "abc")]
    assert words_of({"duration": 1.0, "supervisions": []}).texts == []
