"""Which language models a beam search listens to, and how much: built from training texts or an ARPA file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.config.schema import section
from core.recognition.ngram import BEGIN, END, UNKNOWN, NGram
from core.recognition.ngram_estimation import estimate_ngram
from core.recognition.scorers import CharacterScorer, Scorer, WordScorer
from core.text.vocabulary import CharacterVocabulary


@section
class FusionConfig:
    """The weights of language models in the score of a text.

        score = ln p_ctc + word_weight ln p_words + character_weight ln p_characters + word_bonus words

    The models are estimated from the training texts, the word model is read from `arpa` where one is named. On the
    demo's dev texts, where 29 % of the words are new, the word model needs 2.16 bits a character, a character model
    of order 7 needs 2.23.
    """

    word_weight: float = 0.5
    word_bonus: float = 0.5
    character_weight: float = 0.0
    word_order: int = 3
    spelling_order: int = 5  # of the character model that spells unknown words
    character_order: int = 7
    arpa: str | None = None

    def __post_init__(self) -> None:
        for name in ("word_order", "spelling_order", "character_order"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("word_weight", "character_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.arpa is not None and not self.word_weight:
            raise ValueError(f"arpa={self.arpa} is a word model, which word_weight=0 would ignore")


class WeightedScorer:
    """A weighted sum of scorers, and a bonus for every word; a space needs a word before it."""

    def __init__(
        self, scorers: Sequence[tuple[float, Scorer]], *, word_bonus: float, vocabulary: CharacterVocabulary
    ) -> None:
        self.scorers = scorers
        self.word_bonus = word_bonus
        self.space = vocabulary.ids[" "]
        self.num_symbols = len(vocabulary)
        self.start = (False, *(scorer.start for _, scorer in scorers))  # whether inside a word, their states

    def scores(self, state: tuple[Any, ...]) -> np.ndarray:
        is_in_word, *states = state
        total = np.full(self.num_symbols, 0.0 if is_in_word else self.word_bonus)
        for (weight, scorer), one in zip(self.scorers, states, strict=True):
            total += weight * scorer.scores(one)
        if not is_in_word:
            total[self.space] = -np.inf
        return total

    def advance(self, state: tuple[Any, ...], symbol: int) -> tuple[Any, ...]:
        advanced = (scorer.advance(one, symbol) for (_, scorer), one in zip(self.scorers, state[1:], strict=True))
        return (symbol != self.space, *advanced)

    def final(self, state: tuple[Any, ...]) -> float:
        return sum(weight * scorer.final(one) for (weight, scorer), one in zip(self.scorers, state[1:], strict=True))


def build_scorer(
    config: FusionConfig, *, vocabulary: CharacterVocabulary, texts: Sequence[str]
) -> WeightedScorer | None:
    """Build language models of `texts` (normalized training transcripts), weighted; None if all weights are 0."""
    scorers: list[tuple[float, Scorer]] = []
    if config.word_weight:
        if config.arpa is not None:
            words = NGram.load(Path(config.arpa))
        else:
            sentences = [text.split() for text in texts]
            words = estimate_ngram(sentences, order=config.word_order, smoothing="kneser_ney", unknown_share=1.0)
        seen = sorted(set(words.tokens) - {BEGIN, END, UNKNOWN})
        spelling = estimate_ngram(seen, order=config.spelling_order, smoothing="kneser_ney")
        scorers.append((config.word_weight, WordScorer(words, spelling=spelling, vocabulary=vocabulary)))
    if config.character_weight:
        characters = estimate_ngram(texts, order=config.character_order, smoothing="kneser_ney")
        scorers.append((config.character_weight, CharacterScorer(characters, vocabulary=vocabulary)))
    if not scorers and not config.word_bonus:
        return None
    return WeightedScorer(scorers, word_bonus=config.word_bonus, vocabulary=vocabulary)
