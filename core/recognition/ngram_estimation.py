"""N-gram models estimated from text, for corpora of any size, tiny ones too."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from core.recognition.ngram import (
    BEGIN,
    END,
    NEVER,
    UNKNOWN,
    NGram,
    State,
)

Smoothing = Literal["witten_bell", "kneser_ney"]
_BEGIN, _END, _UNKNOWN = 0, 1, 2  # ids
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def estimate_ngram(
    sentences: Iterable[Sequence[str]],
    *,
    order: int,
    smoothing: Smoothing = "witten_bell",
    unknown_share: float | None = None,
) -> NGram:
    """Estimate an interpolated n-gram model of sentences, each with its end.

        p(w | c) = (n(c w) - d(n) + l(c) p(w | c without its first token)) / (sum over w of n(c w) - d(n), plus l(c))

    witten_bell (Witten & Bell 1991): d = 0, l(c) = the number of different tokens seen after c.
    kneser_ney (Chen & Goodman 1998, modified, interpolated): d = one of three discounts an order, l(c) = all that was
    discounted after c; shorter n-grams count once for each token before them. Where the corpus is so small that the
    discounts cannot be estimated, they are 0.5, 1 and 1.5.
    The empty context falls back to a distribution that gives <unk> `unknown_share` and all other tokens equal parts
    of the rest. None: <unk> is a token like the others. 1: it gets all that is kept for what was not seen, for a
    model whose unknown words are spelled out by another.
    """
    if order < 1:
        raise ValueError(f"order={order} must be at least 1")
    ids: dict[str, int] = {BEGIN: _BEGIN, END: _END, UNKNOWN: _UNKNOWN}
    tables: list[Counter[State]] = [Counter() for _ in range(order)]  # [n - 1]: counts of the n-grams
    for sentence in sentences:
        row = (_BEGIN, *(ids.setdefault(token, len(ids)) for token in sentence), _END)
        for end in range(2, len(row) + 1):  # <s> is only ever context
            for length in range(1, min(order, end) + 1):
                tables[length - 1][row[end - length : end]] += 1
    if not tables[0]:
        raise ValueError("an n-gram model needs at least one sentence; got none")
    if smoothing == "kneser_ney":
        tables = [*map(_continuations, tables[:-1], tables[1:]), tables[-1]]

    num_tokens = len(ids) - 1  # that can be predicted
    share = 1 / num_tokens if unknown_share is None else unknown_share
    rest = (1 - share) / (num_tokens - 1)
    tables[0].update(dict.fromkeys(((token,) for token in ids.values() if token != _BEGIN), 0))  # a 1-gram for each
    probabilities: dict[State, float] = {(): 1.0}
    weights: dict[State, float] = {}
    for table in tables:
        discounts = _discounts(table) if smoothing == "kneser_ney" else (0.0, 0.0, 0.0)
        seen = {ngram: count - discounts[min(count, 3) - 1] if count else 0.0 for ngram, count in table.items()}
        kept: dict[State, float] = defaultdict(float)  # l(c)
        totals: dict[State, float] = defaultdict(float)
        for ngram, count in table.items():
            if count:
                kept[ngram[:-1]] += count - seen[ngram] if smoothing == "kneser_ney" else 1.0
                totals[ngram[:-1]] += seen[ngram]
        for ngram in table:
            context = ngram[:-1]
            shorter = probabilities[ngram[1:]] if context else (share if ngram == (_UNKNOWN,) else rest)
            probabilities[ngram] = (seen[ngram] + kept[context] * shorter) / (totals[context] + kept[context])
        weights |= {context: kept[context] / (totals[context] + kept[context]) for context in kept if context}
    del probabilities[()]
    log_probs = {(_BEGIN,): NEVER} | {ngram: _log(one) for ngram, one in probabilities.items()}
    return NGram(list(ids), log_probs, {context: _log(weight) for context, weight in weights.items()})


def _continuations(table: Counter[State], longer: Counter[State]) -> Counter[State]:
    """Count the different tokens before each n-gram; at the beginning of a sentence there are none: keep its count."""
    continuations = Counter(ngram[1:] for ngram in longer)
    return Counter({ngram: count if ngram[0] == _BEGIN else continuations[ngram] for ngram, count in table.items()})


def _discounts(table: Counter[State]) -> tuple[float, float, float]:
    """Return the discounts of n-grams seen once, twice, and more often."""
    seen = Counter(table.values())
    if not all(seen[count] for count in (1, 2, 3, 4)):
        return _FALLBACK_DISCOUNTS
    ratio = seen[1] / (seen[1] + 2 * seen[2])
    one, two, more = (count - (count + 1) * ratio * seen[count + 1] / seen[count] for count in (1, 2, 3))
    return (one, two, more) if 0 <= one <= 1 and 0 <= two <= 2 and 0 <= more <= 3 else _FALLBACK_DISCOUNTS


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else NEVER
