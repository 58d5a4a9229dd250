"""Greedy search is the best path; beam search is the best labelling among all there are, with language models too."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from core.recognition.decoding import BeamConfig, beam_search, best_alignment, greedy_search
from core.recognition.fusion import FusionConfig, build_scorer
from core.recognition.scorers import Scorer
from core.text.vocabulary import CharacterVocabulary

pytestmark = pytest.mark.numerics

VOCABULARY = CharacterVocabulary([" ", "a", "b"])
WIDE = BeamConfig(beam_size=500, symbols_per_frame=99, score_range=1e9, num_best=500)


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def all_labellings(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """ln p of every labelling, summed over all paths; log_probs (T, V)."""
    labellings: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = sum(log_probs[t, symbol] for t, symbol in enumerate(path))
        labelling = collapse(path)
        labellings[labelling] = np.logaddexp(labellings.get(labelling, -math.inf), score)
    return labellings


def score_of(scorer: Scorer, labelling: tuple[int, ...]) -> float:
    state, score = scorer.start, 0.0
    for symbol in labelling:
        score += float(scorer.scores(state)[symbol])
        if score == -math.inf:
            return score
        state = scorer.advance(state, symbol)
    return score + scorer.final(state)


def random_log_probs(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


FUSIONS = [
    None,
    FusionConfig(word_weight=0.8, word_bonus=0.7, word_order=2, spelling_order=2),
    FusionConfig(word_weight=0.3, character_weight=0.6, word_bonus=-0.5, word_order=1, character_order=3),
    FusionConfig(word_weight=0, character_weight=0, word_bonus=1.0),
]


@pytest.mark.parametrize("fusion", FUSIONS, ids=["acoustic", "words", "words+characters", "bonus"])
@pytest.mark.parametrize("num_frames", [0, 1, 3, 5])
def test_beam_search_equals_exhaustive_search(fusion: FusionConfig | None, num_frames: int) -> None:
    texts = ["a b", "ab ab", "ba a", "a ab"]
    scorer = None if fusion is None else build_scorer(fusion, vocabulary=VOCABULARY, texts=texts)
    for seed in range(6):
        log_probs = random_log_probs(1, num_frames, 4, seed=seed)
        found = beam_search(log_probs, torch.tensor([num_frames]), config=WIDE, scorer=scorer)[0]
        expected = all_labellings(log_probs[0].numpy())
        if scorer is not None:
            expected = {ids: score + score_of(scorer, ids) for ids, score in expected.items()}
            expected = {ids: score for ids, score in expected.items() if score > -math.inf}
        assert tuple(found[0].ids) == max(expected, key=lambda ids: expected[ids])
        assert {tuple(one.ids): one.score for one in found} == pytest.approx(expected, abs=1e-10)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_blank_separated_repeats_are_other_labellings() -> None:
    """a-a is "aa", aa and a are "a": the seed system took all of them for one."""
    a = VOCABULARY.ids["a"]
    log_probs = torch.full((1, 3, 4), -30.0)
    log_probs[0, [0, 1, 2], [a, 0, a]] = 0.0
    assert beam_search(log_probs, torch.tensor([3]), config=BeamConfig())[0][0].ids == [a, a]
    log_probs[0, 1] = torch.tensor([-30.0, -30.0, 0.0, -30.0])
    assert beam_search(log_probs, torch.tensor([3]), config=BeamConfig())[0][0].ids == [a]


def test_many_paths_beat_the_best_path() -> None:
    """p(blank) = 0.4, p(a) = 0.3, p(b) = 0.2 in both frames: the best path says nothing, the best labelling is "a"."""
    log_probs = torch.tensor([[[0.4, 0.1, 0.3, 0.2]] * 2]).log()
    assert greedy_search(log_probs, torch.tensor([2]))[0].ids == []
    best = beam_search(log_probs, torch.tensor([2]), config=BeamConfig(beam_size=4))[0][0]
    assert VOCABULARY.decode(best.ids) == "a"
    assert best.score == pytest.approx(math.log(0.3 * 0.3 + 2 * 0.4 * 0.3))


def test_greedy_equals_a_plain_loop() -> None:
    log_probs = random_log_probs(4, 12, 4, seed=3).float()
    lengths = torch.tensor([12, 7, 1, 0])
    for row, length, found in zip(log_probs, lengths.tolist(), greedy_search(log_probs, lengths), strict=True):
        ids, frames, previous, score = [], [], 0, 0.0
        for t in range(length):
            symbol = int(row[t].argmax())
            score += float(row[t, symbol])
            if symbol not in (0, previous):
                ids.append(symbol)
                frames.append(t)
            previous = symbol
        assert (found.ids, found.frames) == (ids, frames)
        assert found.score == pytest.approx(score, rel=1e-6)


def test_padding_is_not_read() -> None:
    log_probs, lengths = random_log_probs(3, 9, 4, seed=5), torch.tensor([9, 4, 6])
    spoiled = log_probs.clone()
    for row, length in zip(spoiled, lengths.tolist(), strict=True):
        row[length:] = math.nan
    assert greedy_search(spoiled, lengths) == greedy_search(log_probs, lengths)
    config = BeamConfig(num_best=3)
    together = beam_search(spoiled, lengths, config=config)
    alone = [
        beam_search(row[None, :length], torch.tensor([length]), config=config)[0]
        for row, length in zip(log_probs, lengths.tolist(), strict=True)
    ]
    assert together == alone


def test_alignment_is_the_best_path() -> None:
    for seed in range(5):
        log_probs = random_log_probs(5, 4, seed=seed).numpy()
        paths: dict[tuple[int, ...], tuple[int, ...]] = {}
        for path in itertools.product(range(4), repeat=5):
            score = sum(log_probs[t, symbol] for t, symbol in enumerate(path))
            best = paths.get(collapse(path))
            if best is None or score > sum(log_probs[t, symbol] for t, symbol in enumerate(best)):
                paths[collapse(path)] = path
        for ids, path in paths.items():
            starts = [t for t in range(5) if path[t] and (t == 0 or path[t] != path[t - 1])]
            assert best_alignment(log_probs, list(ids)) == starts


def test_narrow_beams_lose_little_and_nothing_invalid_comes_out() -> None:
    log_probs, lengths = random_log_probs(4, 30, 4, seed=1), torch.tensor([30, 20, 30, 11])
    wide = beam_search(log_probs, lengths, config=BeamConfig(beam_size=400, symbols_per_frame=3, score_range=1e3))
    narrow = beam_search(log_probs, lengths, config=BeamConfig(beam_size=20, symbols_per_frame=2, score_range=10))
    for one, other in zip(wide, narrow, strict=True):
        assert other[0].score <= one[0].score + 1e-9
        assert other[0].score > one[0].score - 2.0
        assert other[0].frames == sorted(set(other[0].frames))


def test_words_of_the_language_model_are_heard() -> None:
    """Where the sound leaves it open, a little in favour of "prels one", the training texts decide."""
    texts = ["press one for sales", "press one"]
    vocabulary = CharacterVocabulary.of_texts(texts)
    log_probs = torch.full((1, 9, len(vocabulary)), -9.0)
    for t, character in enumerate("pre?s one"):
        log_probs[0, t, vocabulary.ids.get(character, 0)] = 0.0
    log_probs[0, 3, vocabulary.ids["l"]] = 0.2
    log_probs, lengths = log_probs.log_softmax(-1), torch.tensor([9])
    words = build_scorer(FusionConfig(), vocabulary=vocabulary, texts=texts)
    heard = [beam_search(log_probs, lengths, config=BeamConfig(), scorer=scorer)[0][0] for scorer in (None, words)]
    assert [vocabulary.decode(one.ids) for one in heard] == ["prels one", "pres one"]


def test_nan_is_an_error_not_a_transcript() -> None:
    with pytest.raises(ValueError, match="must not be NaN"):
        beam_search(torch.full((1, 2, 4), math.nan), torch.tensor([2]), config=BeamConfig())


def test_fast_enough() -> None:
    """60 utterances of 100 frames with a language model would take 30 s at 5 ms a frame; 100 frames show the rate."""
    vocabulary = CharacterVocabulary.of_texts(["abcdefghijklmnopqrstuvwxyz' "])
    texts = ["press one to hear the message again", "please enter your number followed by the pound key"] * 20
    scorer = build_scorer(FusionConfig(), vocabulary=vocabulary, texts=texts)
    log_probs = random_log_probs(1, 100, len(vocabulary), seed=0)
    times = []
    for _ in range(3):
        start = time.process_time()
        beam_search(log_probs, torch.tensor([100]), config=BeamConfig(beam_size=50), scorer=scorer)
        times.append(time.process_time() - start)
    assert min(times) < 0.5, times


@pytest.mark.parametrize("wrong", [{"beam_size": 0}, {"symbols_per_frame": 0}, {"score_range": 0.0}, {"num_best": 51}])
def test_config_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BeamConfig(**wrong)  # type: ignore[arg-type]
