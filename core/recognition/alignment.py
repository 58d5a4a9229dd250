"""Forced alignment: when each symbol of a known text is said, by the output of a CTC model (Graves et al., 2006)."""

from typing import NamedTuple

import numpy as np

from core.text.vocabulary import BLANK_ID


class Span(NamedTuple):
    """The first and the last frame of a symbol."""

    first: int
    last: int


def ctc_spans(log_probs: np.ndarray, ids: list[int]) -> list[Span] | None:
    """Return the frames of each symbol on the most probable path that spells `ids`; None where no path does.

    log_probs (T, V) with the blank at 0. Viterbi over the places blank, symbol, blank, ..., symbol, blank: from one
    frame to the next a path stays, moves on by one, or leaves out a blank between symbols that differ. Costs T x U.
    """
    path = np.full(2 * len(ids) + 1, BLANK_ID)  # N places
    path[1::2] = ids
    may_skip = (path[2:] != path[:-2]) & (path[2:] != BLANK_ID)  # into each place but the first two
    scores = np.full(len(path), -np.inf)
    scores[0] = 0.0  # before the first frame, as if a blank had been
    steps = np.zeros((len(log_probs), len(path)), np.int8)  # (T, N) places moved at each frame
    moves = np.full((3, len(path)), -np.inf)
    for number, frame in enumerate(log_probs):
        moves[0] = scores
        moves[1, 1:] = scores[:-1]
        moves[2, 2:] = np.where(may_skip, scores[:-2], -np.inf)
        steps[number] = moves.argmax(axis=0)
        scores = moves.max(axis=0) + frame[path]
    place = len(path) - 1
    if ids and scores[-2] > scores[-1]:
        place -= 1
    if scores[place] == -np.inf:
        return None
    firsts, lasts = [0] * len(ids), [-1] * len(ids)
    for number in range(len(log_probs) - 1, -1, -1):
        if place % 2:
            symbol = place // 2
            firsts[symbol], lasts[symbol] = number, max(lasts[symbol], number)
        place -= int(steps[number, place])
    return list(map(Span, firsts, lasts))
