"""Error rates equal jiwer's, add up in any order, and count what was heard where nothing was said."""

import random

import jiwer
import pytest

from core.recognition.error_rates import ErrorCounts, bootstrap_interval, character_errors, total, word_errors


def random_pairs(number: int) -> list[tuple[str, str]]:
    draw = random.Random(7)
    pairs = []
    for _ in range(number):
        reference = [draw.choice(["a", "bb", "abc", "it's", "no"]) for _ in range(draw.randint(1, 12))]
        hypothesis = [
            draw.choice(["a", "bb", "cab", word, word])
            for word in reference
            for _ in range(draw.choice([0, 1, 1, 1, 2]))
        ]
        pairs.append((" ".join(reference), " ".join(hypothesis)))
    return pairs


def test_equals_jiwer_on_1000_pairs() -> None:
    pairs = random_pairs(1000)
    for reference, hypothesis in pairs:
        ours, theirs = word_errors(reference, hypothesis), jiwer.process_words(reference, hypothesis)
        assert ours.rate == theirs.wer
        assert (ours.substitutions, ours.deletions, ours.insertions) == (
            theirs.substitutions,
            theirs.deletions,
            theirs.insertions,
        )
    references, hypotheses = map(list, zip(*pairs, strict=True))
    words = total(word_errors(*pair) for pair in pairs)
    characters = total(character_errors(*pair) for pair in pairs)
    assert words.rate == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)
    assert characters.rate == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)
    assert (words.utterances, words.wrong_utterances) == (1000, sum(one != two for one, two in pairs))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_any_number_of_ranks_gives_the_same(world_size: int) -> None:
    counts = [word_errors(*pair) for pair in random_pairs(50)]
    ranks = [total(counts[rank::world_size]) for rank in range(world_size)]
    summed = [sum(column) for column in zip(*(rank.astuple() for rank in ranks), strict=True)]  # as an all-reduce does
    assert ErrorCounts(*summed) == total(counts)
    gathered = [one for rank in range(world_size) for one in counts[rank::world_size]]
    assert bootstrap_interval(gathered, seed=1) == bootstrap_interval(counts, seed=1)


def test_empty_references_count() -> None:
    heard = word_errors("", "two words")
    assert (heard.insertions, heard.reference, heard.utterances, heard.rate) == (2, 0, 1, float("inf"))
    assert word_errors("", "").rate == 0.0
    assert (word_errors("four words are here", "four words are here") + heard).rate == 0.5


def test_spaces_are_characters() -> None:
    assert character_errors("a b", "ab") == ErrorCounts(deletions=1, reference=3, utterances=1, wrong_utterances=1)
    assert word_errors("a b", "ab").errors == 2


def test_bootstrap_interval() -> None:
    counts = [word_errors(*pair) for pair in random_pairs(200)]
    low, high = bootstrap_interval(counts, seed=3)
    assert low < total(counts).rate < high
    few = bootstrap_interval(counts[:20], seed=3)
    assert few[1] - few[0] > high - low
    assert bootstrap_interval(counts, seed=3) == (low, high) != bootstrap_interval(counts, seed=4)
    assert bootstrap_interval([word_errors("a b", "a c")] * 9, seed=3) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one reference word"):
        bootstrap_interval([word_errors("", "x")], seed=3)


def test_bootstrap_interval_matches_the_normal_approximation() -> None:
    """400 one-word utterances, a quarter of them wrong: standard error sqrt(.25 .75 / 400) = 0.02165."""
    counts = [word_errors("a", "b" if number % 4 == 0 else "a") for number in range(400)]
    low, high = bootstrap_interval(counts, seed=5, resamples=4000)
    assert low == pytest.approx(0.25 - 1.96 * 0.02165, abs=0.004)
    assert high == pytest.approx(0.25 + 1.96 * 0.02165, abs=0.004)
