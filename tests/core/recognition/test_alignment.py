"""Forced alignment against every path there is."""

from itertools import groupby, product

import numpy as np
import pytest

from core.recognition.alignment import Span, ctc_spans

SYMBOLS = 4


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [symbol for symbol, _ in groupby(path) if symbol]


def spans(path: tuple[int, ...]) -> list[Span]:
    found, start = [], 0
    for symbol, run in groupby(path):
        length = len(list(run))
        if symbol:
            found.append(Span(start, start + length - 1))
        start += length
    return found


@pytest.mark.parametrize("seed", range(40))
def test_the_best_of_all_paths_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_frames = int(rng.integers(1, 7))
    ids = rng.integers(1, SYMBOLS, int(rng.integers(0, 5))).tolist()
    log_probs = np.log(rng.dirichlet(np.ones(SYMBOLS), num_frames))
    paths = [path for path in product(range(SYMBOLS), repeat=num_frames) if collapsed(path) == ids]
    found = ctc_spans(log_probs, ids)
    if not paths:
        assert found is None
        return
    best = max(paths, key=lambda path: sum(log_probs[t, symbol] for t, symbol in enumerate(path)))
    assert found == spans(best)


def test_equal_neighbors_need_a_blank_between_them() -> None:
    sure = np.log(np.full((5, 3), 0.05) + 0.85 * np.eye(3)[[1, 1, 0, 1, 2]])
    assert ctc_spans(sure, [1, 1, 2]) == [Span(0, 1), Span(3, 3), Span(4, 4)]
    assert ctc_spans(sure[:2], [1, 1]) is None
    assert ctc_spans(sure, []) == []
