"""Retrieval over a fixed gallery: does a query find its own? The same on any number of ranks.

    speech = gather_in_order(ranks, positions, features, num_rows=len(valid))  # from all ranks, in the manifest's order
    places = find_places(speech, text, keys=keys)                           # (Q,): 1 is first
    scores = place_scores(places)                                           # r1 r5 r10 mrr median_rank mean_rank
    low, high = bootstrap_interval(places <= 1, seed=0)

A score means something beside its baselines: chance; what the length of the speech alone finds (`LengthModel`); and a
gallery of the items nearest in length (`nearest_in_length`), where length helps least.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from core.distributed import Ranks
from core.seeding import generator

RECALL_AT = (1, 5, 10)
_QUERIES_AT_ONCE = 1024


def gather_in_order(ranks: Ranks, positions: np.ndarray, rows: np.ndarray, *, num_rows: int) -> np.ndarray:
    """Return the rows (n, ...) of all ranks, each at its position: (num_rows, ...) on every rank.

    All ranks together; one may have none. A position given twice keeps one of its rows. ValueError for missing ones.
    """
    shares = [share for share in ranks.gather((positions, rows)) if len(share[0])]
    if not shares:
        raise ValueError(f"no rank has any of the {num_rows} rows of the gallery")
    whole = np.empty((num_rows, *shares[0][1].shape[1:]), dtype=shares[0][1].dtype)
    is_there = np.zeros(num_rows, dtype=bool)
    for places, values in shares:
        whole[places], is_there[places] = values, True
    if not is_there.all():
        missing = np.flatnonzero(~is_there)
        raise ValueError(f"{len(missing)} of {num_rows} rows of the gallery are missing, the first is {missing[0]}")
    return whole


def find_places(
    queries: np.ndarray, gallery: np.ndarray, *, keys: np.ndarray | None = None, candidates: np.ndarray | None = None
) -> np.ndarray:
    """Return the place of gallery row q for query q, by inner product: (Q,) int64, 1 is first.

    queries (Q, D), gallery (Q, D). An item as near as the own one counts as nearer, and so does one that cannot be
    compared: a model that gives all the same, or NaN, has the last place. keys (Q,): other rows with the key of the own
    are the same text and do not count. candidates (Q, K): the rows that each query is compared with beside its own; a
    row that stands there twice counts twice. Computed in fp64.
    """
    places = np.empty(len(queries), dtype=np.int64)
    wide = gallery.astype(np.float64)
    for rows in _blocks(len(queries)):
        own = np.arange(rows.start, rows.stop)
        scores = queries[rows].astype(np.float64) @ wide.T  # (q, Q)
        own_scores = scores[own - rows.start, own]
        others = np.broadcast_to(np.arange(len(gallery)), scores.shape) if candidates is None else candidates[rows]
        is_rival = _is_rival(others, own, keys)
        is_behind = np.take_along_axis(scores, others, axis=1) < own_scores[:, None]
        places[rows] = 1 + (is_rival & ~is_behind).sum(1)
    return places


def place_scores(places: np.ndarray) -> dict[str, float]:
    """Return r1, r5, r10 (shares of the queries), mrr (mean of 1 / place), median_rank, mean_rank."""
    recalls = {f"r{k}": float((places <= k).mean()) for k in RECALL_AT}
    ranks = {"median_rank": float(np.median(places)), "mean_rank": float(places.mean())}
    return {**recalls, "mrr": float((1 / places).mean()), **ranks}


def chance_scores(gallery_size: int) -> dict[str, float]:
    """Return what `place_scores` gives on average where each place is equally likely."""
    every = np.arange(1, gallery_size + 1)
    return place_scores(every)


def bootstrap_interval(
    values: np.ndarray, *, seed: int, num_samples: int = 2000, share: float = 0.95
) -> tuple[float, float]:
    """Return the interval of the mean of values (Q,), drawing queries anew with replacement (Efron 1979)."""
    counts, drawn = len(values), generator(seed, "bootstrap")
    means = [values[drawn.integers(0, counts, counts)].mean() for _ in range(num_samples)]
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def gallery_loss(speech: np.ndarray, text: np.ndarray, *, scale: float, keys: np.ndarray | None = None) -> float:
    """Return the symmetric cross-entropy of core/losses/contrastive.py over the whole gallery, a pair; in fp64."""
    total = 0.0
    for queries, gallery in ((speech, text), (text, speech)):
        wide = gallery.astype(np.float64)
        for rows in _blocks(len(queries)):
            own = np.arange(rows.start, rows.stop)
            logits = scale * (queries[rows].astype(np.float64) @ wide.T)
            own_logits = logits[own - rows.start, own]
            is_counted = _is_rival(np.broadcast_to(np.arange(len(gallery)), logits.shape), own, keys)
            is_counted[own - rows.start, own] = True
            total += float((_log_sum(np.where(is_counted, logits, -np.inf)) - own_logits).sum())
    return total / (2 * len(speech))


@dataclass(frozen=True)
class LengthModel:
    """The line duration_s = slope_s num_chars + offset_s, which finds a text without listening."""

    slope_s: float
    offset_s: float

    @classmethod
    def fit(cls, durations_s: np.ndarray, num_chars: np.ndarray) -> "LengthModel":
        """Fit least squares over pairs, which should be those of training."""
        slope_s, offset_s = np.polyfit(num_chars.astype(np.float64), durations_s.astype(np.float64), 1)
        return cls(float(slope_s), float(offset_s))

    def recall(
        self,
        durations_s: np.ndarray,
        num_chars: np.ndarray,
        *,
        at: int,
        of: str,
        keys: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return each query's chance to have its own among the nearest `at`: (Q,), with ties broken at random.

        The distance is that of a duration to the one expected of a text. `of`: "speech" are the queries, or "text".
        """
        expected_s = self.slope_s * num_chars + self.offset_s
        queries_s, gallery_s = (durations_s, expected_s) if of == "speech" else (expected_s, durations_s)
        hits = np.empty(len(queries_s))
        for rows in _blocks(len(queries_s)):
            own = np.arange(rows.start, rows.stop)
            others = np.broadcast_to(np.arange(len(gallery_s)), (len(own), len(gallery_s)))
            others = others if candidates is None else candidates[rows]
            distances = np.abs(queries_s[rows, None] - gallery_s[others])
            own_distances = np.abs(queries_s[rows] - gallery_s[rows])[:, None]
            is_rival = _is_rival(others, own, keys)
            num_nearer = (is_rival & (distances < own_distances)).sum(1)
            num_equal = (is_rival & (distances == own_distances)).sum(1)
            hits[rows] = np.clip((at - num_nearer) / (num_equal + 1), 0, 1)
        return hits


def nearest_in_length(lengths: np.ndarray, num_others: int, *, keys: np.ndarray | None = None) -> np.ndarray:
    """Return for each item the rows of the `num_others` others nearest in length: (Q, num_others).

    keys (Q,): others with the key of the item are left out. Ties go to the first row. ValueError for too few others.
    """
    chosen = np.empty((len(lengths), num_others), dtype=np.int64)
    for rows in _blocks(len(lengths)):
        own = np.arange(rows.start, rows.stop)
        every = np.broadcast_to(np.arange(len(lengths)), (len(own), len(lengths)))
        is_rival = _is_rival(every, own, keys)
        if is_rival.sum(1).min(initial=num_others) < num_others:
            raise ValueError(f"{num_others} others are more than the gallery of {len(lengths)} has with another text")
        distances = np.abs(lengths[rows, None].astype(np.float64) - lengths)
        chosen[rows] = np.where(is_rival, distances, np.inf).argsort(axis=1, kind="stable")[:, :num_others]
    return chosen


def _is_rival(others: np.ndarray, own: np.ndarray, keys: np.ndarray | None) -> np.ndarray:
    """Map others (q, K), own (q,) to (q, K): neither the own one nor of the same text."""
    if keys is None:
        return others != own[:, None]
    return (others != own[:, None]) & (keys[others] != keys[own][:, None])


def _log_sum(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(1))


def _blocks(num_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, _QUERIES_AT_ONCE):
        yield slice(first, min(first + _QUERIES_AT_ONCE, num_rows))
