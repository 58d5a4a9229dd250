"""N-gram models equal the formulas, evaluated by counting in the corpus at every call, and survive as ARPA files."""

import functools
import gzip
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from core.recognition.ngram import BEGIN, END, UNKNOWN, NGram, Smoothing, estimate_ngram

TEXTS = ["press one for help", "press two for help now", "press one", "goodbye", "one one one two", "help"]


def zipf_sentences() -> list[list[str]]:
    """A corpus large enough that the discounts of Kneser-Ney can be estimated for every order."""
    draw = random.Random(0)
    tokens, weights = [f"w{i}" for i in range(60)], [1 / (i + 1) for i in range(60)]
    return [draw.choices(tokens, weights, k=draw.randint(1, 9)) for _ in range(120)]


class Reference:
    """The definition: every count is made by walking through the corpus, and there is no back-off."""

    def __init__(self, sentences: Sequence[Sequence[str]], *, order: int, smoothing: str, unknown_share: float | None):
        self.rows = [[BEGIN, *sentence, END] for sentence in sentences]
        self.tokens = sorted({token for row in self.rows for token in row[1:]} | {UNKNOWN})
        self.order, self.smoothing, self.unknown_share = order, smoothing, unknown_share

    @functools.cache  # noqa: B019
    def windows(self, length: int) -> list[tuple[str, ...]]:
        """All n-grams of a length in the corpus whose last token is not <s>."""
        return [
            tuple(row[i : i + length])
            for row in self.rows
            for i in range(len(row) - length + 1)
            if row[i + length - 1] != BEGIN
        ]

    @functools.cache  # noqa: B019
    def count(self, ngram: tuple[str, ...]) -> int:
        if self.smoothing == "kneser_ney" and len(ngram) < self.order and ngram[0] != BEGIN:
            return len({longer[0] for longer in self.windows(len(ngram) + 1) if longer[1:] == ngram})
        return self.windows(len(ngram)).count(ngram)

    @functools.cache  # noqa: B019
    def discount(self, count: int, length: int) -> float:
        if count == 0 or self.smoothing == "witten_bell":
            return 0.0
        counts = [self.count(ngram) for ngram in set(self.windows(length))]
        n = [counts.count(i) for i in range(5)]
        if 0 in n[1:]:
            return (0.5, 1.0, 1.5)[min(count, 3) - 1]
        y = n[1] / (n[1] + 2 * n[2])
        return (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])[min(count, 3) - 1]

    def probability(self, token: str, context: tuple[str, ...]) -> float:
        if context:
            lower = self.probability(token, context[1:])
        else:
            share = 1 / len(self.tokens) if self.unknown_share is None else self.unknown_share
            lower = share if token == UNKNOWN else (1 - share) / (len(self.tokens) - 1)
        after = {one: self.count((*context, one)) for one in self.tokens}
        total = sum(after.values())
        if total == 0:
            return lower
        length = len(context) + 1
        if self.smoothing == "witten_bell":
            kinds = sum(count > 0 for count in after.values())
            return (after[token] + kinds * lower) / (total + kinds)
        kept = sum(self.discount(count, length) for count in after.values())
        return (after[token] - self.discount(after[token], length) + kept * lower) / total


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("smoothing", ["witten_bell", "kneser_ney"])
@pytest.mark.parametrize("unknown_share", [None, 1.0])
def test_equals_the_definition(order: int, smoothing: Smoothing, unknown_share: float | None) -> None:
    sentences = [text.split() for text in TEXTS]
    ngram = estimate_ngram(sentences, order=order, smoothing=smoothing, unknown_share=unknown_share)
    reference = Reference(sentences, order=order, smoothing=smoothing, unknown_share=unknown_share)
    assert sorted(ngram.tokens) == sorted([*reference.tokens, BEGIN])
    for history in itertools.chain(
        itertools.product(["press", "one", "for", UNKNOWN], repeat=2), [("now",), ()], [("one", "one", "two")]
    ):
        state = ngram.start
        for token in history:
            state = ngram.advance(state, ngram.id_of(token))
        context = (BEGIN, *history)[len(history) + 1 - (order - 1) :] if order > 1 else ()
        for token in reference.tokens:
            expected = reference.probability(token, context)
            assert math.exp(ngram.score(state, ngram.ids[token])) == pytest.approx(expected, abs=1e-12), (
                token,
                context,
            )


def test_estimated_discounts_equal_the_definition() -> None:
    sentences = zipf_sentences()
    ngram = estimate_ngram(sentences, order=2, smoothing="kneser_ney")
    reference = Reference(sentences, order=2, smoothing="kneser_ney", unknown_share=None)
    assert [reference.discount(1, length) != 0.5 for length in (1, 2)] == [True, True], (
        "the fallback is not tested here"
    )
    for context, token in [("w0", "w1"), ("w0", "w59"), ("w7", "w0"), (BEGIN, "w3"), ("w5", UNKNOWN), ("w2", END)]:
        state = ngram.start if context == BEGIN else ngram.advance(ngram.start, ngram.ids[context])
        expected = reference.probability(token, (context,))
        assert math.exp(ngram.score(state, ngram.ids[token])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", ["witten_bell", "kneser_ney"])
def test_distribution_is_one_and_equals_the_scores(smoothing: Smoothing) -> None:
    sentences = zipf_sentences()
    ngram = estimate_ngram(sentences, order=4, smoothing=smoothing)
    state = ngram.start
    for token in ["w0", "w1", "w0", "w33", "never seen", "w2"]:
        distribution = ngram.distribution(state)
        assert np.exp(distribution).sum() == pytest.approx(1.0, abs=1e-12)
        assert [ngram.score(state, number) for number in range(len(ngram.tokens))] == pytest.approx(
            distribution.tolist()
        )
        state = ngram.advance(state, ngram.id_of(token))


def test_equal_states_for_histories_that_predict_equally() -> None:
    ngram = estimate_ngram([text.split() for text in TEXTS], order=3)
    unseen = ngram.advance(ngram.advance(ngram.start, ngram.ids["goodbye"]), ngram.ids["press"])
    assert unseen == (ngram.ids["press"],)


def test_perplexity() -> None:
    """Two sentences of "a" or "b" with their ends: p(a) = p(b) = (1 + 3/4) / 7, p(</s>) = (2 + 3/4) / 7."""
    ngram = estimate_ngram([["a"], ["b"]], order=1)
    expected = (1.75 / 7 * 2.75 / 7) ** -0.5
    assert ngram.perplexity([["a"], ["b"]]) == pytest.approx(expected)
    unknown = (0.75 / 7 * 2.75 / 7) ** -0.5
    assert ngram.perplexity([["new"]]) == pytest.approx(unknown)


@pytest.mark.parametrize("name", ["words.arpa", "characters.arpa"])
def test_arpa_round_trip(tmp_path: Path, name: str) -> None:
    sentences = TEXTS if name == "characters.arpa" else [text.split() for text in TEXTS]
    ngram = estimate_ngram(sentences, order=3, smoothing="kneser_ney")
    ngram.save(tmp_path / name)
    loaded = NGram.load(tmp_path / name)
    assert loaded.order == 3
    for sentence in [*sentences, sentences[2][::-1], ["?"]]:
        assert loaded.sentence_log_prob(sentence) == pytest.approx(ngram.sentence_log_prob(sentence), abs=1e-7)
    loaded.save(tmp_path / "again.arpa")
    assert (tmp_path / "again.arpa").read_text() == (tmp_path / name).read_text()
    (tmp_path / "packed.arpa.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert NGram.load(tmp_path / "packed.arpa.gz").log_probs == loaded.log_probs


ARPA = """
made elsewhere

\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99\t<s>\t-0.5
-0.7\t</s>
-0.4\tA\t-0.25
-1.5\tB

\\2-grams:
-0.1\t<s> A
-0.2\tA B

\\end\\
"""


def test_arpa_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "a.arpa").write_text(ARPA)
    ngram = NGram.load(tmp_path / "a.arpa")
    for sentence, log10 in [
        ("A B", -0.1 - 0.2 - 0.7),
        ("A A", -0.1 - 0.25 - 0.4 - 0.25 - 0.7),
        ("B", -0.5 - 1.5 - 0.7),
    ]:
        assert ngram.sentence_log_prob(sentence.split()) == pytest.approx(log10 * math.log(10))
    assert ngram.sentence_log_prob(["C"]) < -200  # the file has no <unk>


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (ARPA.replace("-0.2\tA B\n", ""), "declares n-grams .* cut short"),
        (ARPA.replace("-0.2\tA B", "-0.2\tA"), r"a.arpa:16: .*expected a 2-gram"),
        (ARPA.replace("-0.2\tA B", "-0.2\tA X"), r"a.arpa:16: .*not among the 1-grams"),
        ("nothing", "no ARPA file"),
    ],
)
def test_malformed_arpa(tmp_path: Path, wrong: str, problem: str) -> None:
    (tmp_path / "a.arpa").write_text(wrong)
    with pytest.raises(ValueError, match=problem):
        NGram.load(tmp_path / "a.arpa")


def test_nothing_to_estimate_from() -> None:
    with pytest.raises(ValueError, match="at least one sentence"):
        estimate_ngram([], order=2)
    with pytest.raises(ValueError, match="order=0"):
        estimate_ngram([["a"]], order=0)
