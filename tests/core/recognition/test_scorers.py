"""The scores of the characters of a text add up to the probability of its words, and look ahead to it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from core.recognition.fusion import FusionConfig, build_scorer
from core.recognition.ngram import END, UNKNOWN, NGram, estimate_ngram
from core.recognition.scorers import CharacterScorer, Scorer, WordScorer
from core.text.normalization import normalize_transcript
from core.text.vocabulary import CharacterVocabulary

TEXTS = ["a bad cab", "abba dab", "a cab a bad cab", "dad", "add a bad dad"]
DEMO = Path(__file__).parents[3] / "manifests" / "demo"
VOCABULARY = CharacterVocabulary.of_texts(TEXTS)


def score_of(scorer: Scorer, text: str, *, ends: bool = True, vocabulary: CharacterVocabulary = VOCABULARY) -> float:
    state, score = scorer.start, 0.0
    for symbol in vocabulary.encode(text):
        score += float(scorer.scores(state)[symbol])
        state = scorer.advance(state, symbol)
    return score + (scorer.final(state) if ends else 0.0)


def word_models() -> tuple[NGram, NGram]:
    words = estimate_ngram([text.split() for text in TEXTS], order=3, smoothing="kneser_ney", unknown_share=1.0)
    seen = sorted({word for text in TEXTS for word in text.split()})
    return words, estimate_ngram(seen, order=3)


def log_prob_of_words(words: NGram, spelling: NGram, text: str) -> float:
    """ln of the product of p(w | h) + p(<unk> | h) q(w), with plain scores of the two models."""
    state, log_prob = words.start, 0.0
    for word in text.split():
        token = words.id_of(word)
        known = math.exp(words.score(state, token)) if token != words.ids[UNKNOWN] else 0.0
        unknown = math.exp(words.score(state, words.ids[UNKNOWN]) + spelling.sentence_log_prob(word))
        log_prob += math.log(known + unknown)
        state = words.advance(state, token)
    return log_prob + words.score(state, words.ids[END])


@pytest.mark.parametrize("text", ["a bad cab", "a cab", "dada a bad", "b", "bad bad bad abba abbad", "cadddab"])
def test_word_scores_add_up_to_the_words(text: str) -> None:
    words, spelling = word_models()
    scorer = WordScorer(words, spelling=spelling, vocabulary=VOCABULARY)
    assert score_of(scorer, text) == pytest.approx(log_prob_of_words(words, spelling, text), abs=1e-10)
    assert score_of(scorer, text + " ") == pytest.approx(log_prob_of_words(words, spelling, text), abs=1e-10)


def test_look_ahead_is_the_probability_of_all_words_that_begin_so() -> None:
    words, spelling = word_models()
    scorer = WordScorer(words, spelling=spelling, vocabulary=VOCABULARY)
    state = words.advance(words.start, words.ids["a"])
    begin_with_ba = [word for word in words.tokens if word.startswith("ba")]
    spelled, at = 0.0, spelling.start
    for character in "ba":
        spelled += spelling.score(at, spelling.ids[character])
        at = spelling.advance(at, spelling.ids[character])
    expected = sum(math.exp(words.score(state, words.ids[word])) for word in begin_with_ba)
    expected += math.exp(words.score(state, words.ids[UNKNOWN]) + spelled)
    ours = score_of(scorer, "a ba", ends=False) - score_of(scorer, "a ", ends=False)
    assert math.exp(ours) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("text", ["", "a", "a b", "dad", "cad", "a bad d"])
def test_next_characters_and_the_end_are_one_distribution(text: str) -> None:
    """In the middle of a word. After a word the end of the text is decided later, at the space."""
    words, spelling = word_models()
    for scorer in (
        WordScorer(words, spelling=spelling, vocabulary=VOCABULARY),
        CharacterScorer(estimate_ngram(TEXTS, order=4, smoothing="kneser_ney"), vocabulary=VOCABULARY),
    ):
        state = scorer.start
        for symbol in VOCABULARY.encode(text):
            state = scorer.advance(state, symbol)
        total = np.exp(scorer.scores(state)[1:]).sum()
        if isinstance(scorer, CharacterScorer) or not text:
            total += math.exp(scorer.final(state))
        assert total <= 1 + 1e-9
        assert total > 0.9  # less only what <unk> characters, empty words and the like are given


def test_character_scores_add_up_to_the_sentence() -> None:
    ngram = estimate_ngram(TEXTS, order=4, smoothing="kneser_ney")
    scorer = CharacterScorer(ngram, vocabulary=VOCABULARY)
    for text in ("a bad cab", "dcba"):
        assert score_of(scorer, text) == pytest.approx(ngram.sentence_log_prob(text), abs=1e-12)


def test_words_that_the_vocabulary_cannot_spell_are_counted_not_heard() -> None:
    words = estimate_ngram([["a", "caf\u00e9"], ["bad"]], order=2)
    scorer = WordScorer(words, spelling=estimate_ngram(["a", "bad"], order=2), vocabulary=VOCABULARY)
    assert scorer.num_unspellable == 1
    assert len(scorer.words) == 2


def test_weights_bonus_and_spaces() -> None:
    config = FusionConfig(word_weight=0.7, word_bonus=1.5, character_weight=0.2, character_order=4, spelling_order=3)
    scorer = build_scorer(config, vocabulary=VOCABULARY, texts=TEXTS)
    assert scorer is not None
    words, spelling = word_models()
    spelling = estimate_ngram(sorted(set(" ".join(TEXTS).split())), order=3, smoothing="kneser_ney")
    characters = estimate_ngram(TEXTS, order=4, smoothing="kneser_ney")
    for text, num_words in [("a bad cab", 3), ("dab", 1), ("ad dad", 2)]:
        expected = 0.7 * log_prob_of_words(words, spelling, text) + 0.2 * characters.sentence_log_prob(text)
        assert score_of(scorer, text) == pytest.approx(expected + 1.5 * num_words, abs=1e-10)
    for text in (" ", "a  "):
        assert score_of(scorer, text, ends=False) == -math.inf


def test_arpa_word_model(tmp_path: Path) -> None:
    words, _ = word_models()
    words.save(tmp_path / "words.arpa")
    given = build_scorer(FusionConfig(arpa=str(tmp_path / "words.arpa")), vocabulary=VOCABULARY, texts=[])
    estimated = build_scorer(FusionConfig(), vocabulary=VOCABULARY, texts=TEXTS)
    assert given is not None and estimated is not None
    assert score_of(given, "a bad cad") == pytest.approx(score_of(estimated, "a bad cad"), abs=1e-7)


def test_nothing_to_listen_to() -> None:
    assert build_scorer(FusionConfig(word_weight=0, word_bonus=0), vocabulary=VOCABULARY, texts=TEXTS) is None


@pytest.mark.parametrize("wrong", [{"word_order": 0}, {"word_weight": -1.0}, {"arpa": "x.arpa", "word_weight": 0.0}])
def test_config_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FusionConfig(**wrong)  # type: ignore[arg-type]


def test_words_with_look_ahead_predict_the_demo_better_than_characters() -> None:
    """The numbers in FusionConfig's docstring, and why its defaults are what they are."""
    train, dev = (
        [
            str(normalize_transcript(json.loads(line)["supervisions"][0]["text"]))
            for line in (DEMO / f"english_{split}.jsonl").read_text().splitlines()
        ]
        for split in ("train", "dev")
    )
    vocabulary = CharacterVocabulary.of_texts(train)
    num_characters = sum(len(text) + 1 for text in dev)

    def bits(word_weight: float, character_weight: float) -> float:
        config = FusionConfig(word_weight=word_weight, character_weight=character_weight, word_bonus=0)
        scorer = build_scorer(config, vocabulary=vocabulary, texts=train)
        assert scorer is not None
        return -sum(score_of(scorer, text, vocabulary=vocabulary) for text in dev) / num_characters / math.log(2)

    assert bits(1, 0) == pytest.approx(2.16, abs=0.01)
    assert bits(0, 1) == pytest.approx(2.23, abs=0.01)
