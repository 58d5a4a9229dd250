"""Word and character error rates as counts that add up: over utterances, batches and ranks, in any order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from core.seeding import generator


@dataclass(frozen=True)
class ErrorCounts:
    """The edit operations that turn reference into hypothesis, in words or in characters; `a + b` adds corpora.

    An utterance with an empty reference counts too: all that was heard there are insertions.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0  # words or characters of the reference
    utterances: int = 0
    wrong_utterances: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """The errors per reference word or character: 1.0 is 100 %; infinite for errors without a reference."""
        if self.reference == 0:
            return float("inf") if self.errors else 0.0
        return self.errors / self.reference

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(mine + theirs for mine, theirs in zip(self.astuple(), other.astuple(), strict=True)))

    def astuple(self) -> tuple[int, int, int, int, int, int]:
        """Return the counts in the order of the fields, for a sum over ranks; `ErrorCounts(*counts)` reads it back."""
        return (
            self.substitutions,
            self.deletions,
            self.insertions,
            self.reference,
            self.utterances,
            self.wrong_utterances,
        )


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    """Count the errors of one utterance by a minimal alignment of two sequences of words (lists) or characters."""
    edits = Levenshtein.editops(reference, hypothesis)
    kinds = [edit.tag for edit in edits]
    return ErrorCounts(
        substitutions=kinds.count("replace"),
        deletions=kinds.count("delete"),
        insertions=kinds.count("insert"),
        reference=len(reference),
        utterances=1,
        wrong_utterances=int(bool(kinds)),
    )


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Count the errors of one utterance in words, split at white space, for its WER."""
    return count_errors(reference.split(), hypothesis.split())


def character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Count the errors of one utterance in characters, the spaces between words included, for its CER."""
    return count_errors(" ".join(reference.split()), " ".join(hypothesis.split()))


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    return sum(counts, ErrorCounts())


def bootstrap_interval(
    counts: Sequence[ErrorCounts], *, seed: int, confidence: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Return a percentile interval of the corpus error rate, resampling whole utterances (Bisani & Ney, 2004).

    The order of `counts` does not matter, so the interval is the same for any number of ranks.
    """
    if total(counts).reference == 0:
        raise ValueError("an error rate needs at least one reference word; got none")
    table = np.array(sorted((one.errors, one.reference) for one in counts))  # (N, 2)
    random = generator(seed, "scoring.bootstrap")
    rates = []
    for _ in range(resamples):
        errors, reference = table[random.integers(len(table), size=len(table))].sum(axis=0)
        if reference:  # a resample of empty references only has no rate
            rates.append(errors / reference)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(rates, [tail, 100 - tail])
    return float(low), float(high)
