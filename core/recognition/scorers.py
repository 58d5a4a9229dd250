"""Language models for beam search: what each next character adds to the score of a hypothesis.

A word model says nothing in the middle of a word, and a hypothesis that it will refuse at the next space has by then
pushed others out of the beam. So `WordScorer` looks ahead: it scores each character by the probability of all words
that the letters so far can become, including words that it never saw, spelled by a character model.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from core.recognition.ngram import BEGIN, END, UNKNOWN, NGram, State
from core.text.vocabulary import BLANK_ID, CharacterVocabulary

T = TypeVar("T")
_CACHED_NUMBERS = 2**24  # in all cached rows of one kind together
_TINY = 1e-300  # stands for 0 where a logarithm is taken


class Scorer(Protocol):
    """A language model; its states are hashable, symbols are ids of the vocabulary, and V its size with the blank."""

    @property
    def start(self) -> Any: ...

    def scores(self, state: Any) -> np.ndarray:
        """Return what each next symbol adds, (V,), read-only; -inf forbids it. The blank's entry means nothing."""
        ...

    def advance(self, state: Any, symbol: int) -> Any: ...

    def final(self, state: Any) -> float:
        """Return what the end of the utterance adds."""
        ...


class CharacterScorer:
    """The ln p of a character n-gram model that was trained on whole texts, spaces included."""

    def __init__(self, ngram: NGram, *, vocabulary: CharacterVocabulary) -> None:
        self.ngram = ngram
        self.start = ngram.start
        self.tokens = _tokens_of_symbols(ngram, vocabulary)  # (V,)
        self._distribution = _cached(ngram.distribution, length=len(ngram.tokens))

    def scores(self, state: State) -> np.ndarray:
        return self._distribution(state)[self.tokens]

    def advance(self, state: State, symbol: int) -> State:
        return self.ngram.advance(state, int(self.tokens[symbol]))

    def final(self, state: State) -> float:
        return float(self._distribution(state)[self.ngram.ids[END]])


class WordState(NamedTuple):
    """The state of a hypothesis: its complete words, and the part of a word that follows them."""

    history: State  # of the word model
    first: int  # the known words that begin with the part: words[first:last]
    last: int
    length: int  # of the part, in characters
    spelling: State  # of the character model inside the word
    log_spelled: float  # ln of its probability of the part
    log_mass: float  # ln of the probability of all words that begin with the part


class _Branch(NamedTuple):
    """The next symbols of the known words that share a beginning."""

    firsts: np.ndarray  # (V,): with symbol v they are words[firsts[v]:lasts[v]]
    lasts: np.ndarray
    complete: int | None  # the one that is the beginning itself


class _Prediction(NamedTuple):
    """The word model's distribution after one history."""

    probabilities: np.ndarray  # (W,) of the known words
    cumulative: np.ndarray  # (W + 1,)
    log_unknown: float
    log_end: float


class WordScorer:
    """The ln p of a word n-gram model with an open vocabulary, spread over the characters of the words.

        P(part | h) = sum of p(w | h) over known words w that begin with the part + p(<unk> | h) q(part)
        score(next character) = ln P(part + character | h) - ln P(part | h)

    where q is `spelling`, a character model of words whose end is the end of the word; at a space P is that of the
    complete word. The scores of a text's characters add up to ln of the product of its words' probabilities
    p(w | h) + p(<unk> | h) q(w), as a look-ahead should (Hori et al. 2018, arXiv:1808.02608, where p has no q).
    Known words that the vocabulary cannot spell are left out: `num_unspellable`.
    """

    def __init__(self, ngram: NGram, *, spelling: NGram, vocabulary: CharacterVocabulary) -> None:
        self.ngram, self.spelling = ngram, spelling
        self.space = vocabulary.ids[" "]
        self.num_symbols = len(vocabulary)
        special = (BEGIN, END, UNKNOWN)
        known = [token for token in ngram.tokens if token not in special and set(token) <= set(vocabulary.symbols)]
        self.num_unspellable = len(ngram.tokens) - len(special) - len(known)
        spelled = sorted((tuple(vocabulary.encode(word)), ngram.ids[word]) for word in known)
        self.words = [ids for ids, _ in spelled]  # in order, so that words with a common beginning are neighbours
        self.word_tokens = np.array([token for _, token in spelled], dtype=np.int64)
        self.spelling_tokens = _tokens_of_symbols(spelling, vocabulary)  # (V,)
        self._predict = _cached(self._prediction, length=2 * len(self.words) + 1)
        self._spell = _cached(spelling.distribution, length=len(spelling.tokens))
        self._branch = _cached(self._branching, length=2 * self.num_symbols)
        self.start = self._after_word(ngram.start)

    def scores(self, state: WordState) -> np.ndarray:
        prediction = self._predict(state.history)
        branch = self._branch(state.first, state.last, state.length)
        known = prediction.cumulative[branch.lasts] - prediction.cumulative[branch.firsts]  # (V,)
        unknown = prediction.log_unknown + state.log_spelled + self._spell(state.spelling)[self.spelling_tokens]
        scores = np.logaddexp(np.log(np.maximum(known, _TINY)), unknown) - state.log_mass
        scores[self.space] = self._log_word(state) - state.log_mass if state.length else -np.inf
        return scores

    def advance(self, state: WordState, symbol: int) -> WordState:
        if symbol == self.space:
            return self._after_word(self.ngram.advance(state.history, self._word(state)))
        prediction = self._predict(state.history)
        branch = self._branch(state.first, state.last, state.length)
        first, last = int(branch.firsts[symbol]), int(branch.lasts[symbol])
        token = int(self.spelling_tokens[symbol])
        log_spelled = state.log_spelled + float(self._spell(state.spelling)[token])
        known = float(prediction.cumulative[last] - prediction.cumulative[first])
        return WordState(
            history=state.history,
            first=first,
            last=last,
            length=state.length + 1,
            spelling=self.spelling.advance(state.spelling, token),
            log_spelled=log_spelled,
            log_mass=_log_sum(known, prediction.log_unknown + log_spelled),
        )

    def final(self, state: WordState) -> float:
        if not state.length:
            return self._predict(state.history).log_end
        history = self.ngram.advance(state.history, self._word(state))
        return self._log_word(state) - state.log_mass + self._predict(history).log_end

    def _after_word(self, history: State) -> WordState:
        return WordState(history, 0, len(self.words), 0, self.spelling.start, 0.0, 0.0)

    def _word(self, state: WordState) -> int:
        """Return the token of the part as a complete word."""
        complete = self._branch(state.first, state.last, state.length).complete
        return self.ngram.ids[UNKNOWN] if complete is None else int(self.word_tokens[complete])

    def _log_word(self, state: WordState) -> float:
        """Return ln of the probability of the part as a complete word."""
        prediction = self._predict(state.history)
        spelled_end = float(self._spell(state.spelling)[self.spelling.ids[END]])
        complete = self._branch(state.first, state.last, state.length).complete
        known = 0.0 if complete is None else float(prediction.probabilities[complete])
        return _log_sum(known, prediction.log_unknown + state.log_spelled + spelled_end)

    def _prediction(self, history: State) -> _Prediction:
        log_probs = self.ngram.distribution(history)
        probabilities = np.exp(log_probs[self.word_tokens])
        return _Prediction(
            probabilities,
            np.concatenate([[0.0], probabilities.cumsum()]),
            float(log_probs[self.ngram.ids[UNKNOWN]]),
            float(log_probs[self.ngram.ids[END]]),
        )

    def _branching(self, first: int, last: int, length: int) -> _Branch:
        complete = first if first < last and len(self.words[first]) == length else None
        following = [word[length] for word in self.words[first + (complete is not None) : last]]
        edges = np.searchsorted(following, np.arange(self.num_symbols + 1)) + first + (complete is not None)
        return _Branch(edges[:-1], edges[1:], complete)


def _tokens_of_symbols(ngram: NGram, vocabulary: CharacterVocabulary) -> np.ndarray:
    """Return (V,), the n-gram's token of each symbol; that of the blank, which is never asked for, is <unk>."""
    tokens = np.array([ngram.ids[UNKNOWN], *map(ngram.id_of, vocabulary.symbols)])
    assert BLANK_ID == 0
    return tokens


def _cached(function: Callable[..., T], *, length: int) -> Callable[..., T]:
    return lru_cache(maxsize=max(16, _CACHED_NUMBERS // max(length, 1)))(function)


def _log_sum(probability: float, log_other: float) -> float:
    """Return ln (probability + exp log_other)."""
    log_one = math.log(max(probability, _TINY))
    low, high = sorted((log_one, log_other))
    return high + math.log1p(math.exp(low - high))
