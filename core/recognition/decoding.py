"""From CTC log-probabilities to text: the best path, and the best labelling by prefix beam search."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.config.schema import section
from core.recognition.alignment import ctc_spans
from core.recognition.scorers import Scorer
from core.text.vocabulary import BLANK_ID


@section
class BeamConfig:
    """The width of a prefix beam search; wider is slower and never worse on its own score."""

    beam_size: int = 50  # prefixes kept after each frame
    symbols_per_frame: int = 20  # the most probable symbols of a frame that may extend a prefix
    score_range: float = 20.0  # prefixes that fall further behind the best are dropped
    num_best: int = 1  # hypotheses returned

    def __post_init__(self) -> None:
        for name in ("beam_size", "symbols_per_frame", "num_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_best > self.beam_size:
            raise ValueError(f"num_best={self.num_best} must not be larger than beam_size={self.beam_size}")
        if self.score_range <= 0:
            raise ValueError(f"score_range={self.score_range} must be positive")


@dataclass(frozen=True)
class Hypothesis:
    """A labelling without blanks or repeats."""

    ids: list[int]
    frames: list[int]  # where each symbol begins, in encoder frames
    score: float


def greedy_search(log_probs: Tensor, lengths: Tensor) -> list[Hypothesis]:
    """Return the labelling of each utterance's most probable path; its score is the path's log-probability.

    log_probs (B, T, V), lengths (B,); nothing after an utterance's length is read. One transfer from the device.
    """
    best, symbols = log_probs.max(dim=-1)  # (B, T)
    is_valid = torch.arange(symbols.shape[1], device=symbols.device) < lengths.to(symbols.device)[:, None]
    previous = torch.nn.functional.pad(symbols[:, :-1], (1, 0), value=BLANK_ID)
    is_start = (symbols != BLANK_ID) & (symbols != previous) & is_valid
    scores = torch.where(is_valid, best, 0).sum(dim=1)
    rows, frames = is_start.nonzero(as_tuple=True)
    packed = torch.stack([rows, frames, symbols[rows, frames]]).cpu().numpy()  # (3, N)
    bounds = np.searchsorted(packed[0], np.arange(1, len(symbols)))
    return [
        Hypothesis(ids=ids.tolist(), frames=starts.tolist(), score=score)
        for starts, ids, score in zip(*(np.split(one, bounds) for one in packed[1:]), scores.tolist(), strict=True)
    ]


def beam_search(
    log_probs: Tensor, lengths: Tensor, *, config: BeamConfig, scorer: Scorer | None = None
) -> list[list[Hypothesis]]:
    """Return the labellings of each utterance with the highest scores, best first: at most `num_best`.

    score(y) = ln p_ctc(y), summed over all its alignments, + what the scorer adds for its symbols and its end.
    Prefix beam search (Graves 2012; Hannun et al. 2014, arXiv:1408.2873): one entry a prefix, with the probability of
    its paths that end in a blank apart from the others, because only a blank lets a symbol repeat.
    log_probs (B, T, V), lengths (B,); nothing after an utterance's length is read. Runs on the CPU.
    """
    rows = log_probs.detach().cpu().double().numpy()
    return [
        _Search(row[:length], config=config, scorer=scorer).best()
        for row, length in zip(rows, lengths.tolist(), strict=True)
    ]


class _Search:
    """The search of one utterance. Prefixes are nodes of a tree; the beam is one entry of each array, K in all."""

    def __init__(self, log_probs: np.ndarray, *, config: BeamConfig, scorer: Scorer | None) -> None:
        if np.isnan(log_probs).any():
            raise ValueError("log_probs must not be NaN: the model has diverged, or its input was NaN")
        self.log_probs, self.config, self.scorer = log_probs, config, scorer  # (T, V)
        self.parents, self.symbols = [-1], [BLANK_ID]
        self.children: dict[tuple[int, int], int] = {}
        self.states = [] if scorer is None else [scorer.start]
        self.additions = np.zeros((0 if scorer is None else 1024, log_probs.shape[1]))  # what the scorer adds, a node
        if scorer is not None:
            self.additions[0] = scorer.scores(scorer.start)
        self.nodes = np.zeros(1, dtype=np.int64)  # (K,)
        self.last = np.full(1, BLANK_ID)  # (K,) last symbol
        self.ends_blank = np.zeros(1)  # (K,) ln p of the paths that end in a blank
        self.ends_symbol = np.full(1, -np.inf)
        self.added = np.zeros(1)  # (K,) what the scorer has added so far
        for frame in log_probs:
            self._advance(frame)

    def best(self) -> list[Hypothesis]:
        scores = np.logaddexp(self.ends_blank, self.ends_symbol) + self.added
        if self.scorer is not None:
            scores += [self.scorer.final(self.states[node]) for node in self.nodes.tolist()]
        order = np.argsort(-scores, kind="stable")[: self.config.num_best]
        found = []
        for entry in order[np.isfinite(scores[order])].tolist():
            ids = self._spelled(int(self.nodes[entry]))
            found.append(Hypothesis(ids, best_alignment(self.log_probs, ids), float(scores[entry])))
        return found

    def _advance(self, frame: np.ndarray) -> None:
        symbols = np.arange(1, len(frame))  # (C,) that may extend a prefix
        if self.config.symbols_per_frame < len(symbols):
            symbols = 1 + np.argpartition(-frame[1:], self.config.symbols_per_frame)[: self.config.symbols_per_frame]
        either = np.logaddexp(self.ends_blank, self.ends_symbol)  # (K,)

        stay_blank = either + frame[BLANK_ID]
        stay_symbol = self.ends_symbol + frame[self.last]
        is_repeat = symbols == self.last[:, None]  # (K, C)
        extended = np.where(is_repeat, self.ends_blank[:, None], either[:, None]) + frame[symbols]

        # An extension that is itself in the beam adds its paths there.
        place = dict(zip(self.nodes.tolist(), range(len(self.nodes)), strict=True))
        column = np.full(len(frame), -1)
        column[symbols] = np.arange(len(symbols))
        for entry, node in enumerate(self.nodes.tolist()):
            parent = place.get(self.parents[node])
            if parent is not None and column[self.last[entry]] >= 0:
                at = parent, column[self.last[entry]]
                stay_symbol[entry] = np.logaddexp(stay_symbol[entry], extended[at])
                extended[at] = -np.inf

        stay_scores = np.logaddexp(stay_blank, stay_symbol) + self.added
        added = np.broadcast_to(self.added[:, None], extended.shape)
        if self.scorer is not None:
            added = added + self.additions[self.nodes[:, None], symbols]
        scores = np.concatenate([stay_scores, (extended + added).ravel()])
        chosen = np.arange(len(scores))
        if len(scores) > self.config.beam_size:
            chosen = np.argpartition(-scores, self.config.beam_size)[: self.config.beam_size]
        best = scores.max()
        if not np.isfinite(best):
            raise ValueError("log_probs must give every frame a symbol or a blank that it can be; all are -inf")
        chosen = chosen[scores[chosen] >= best - self.config.score_range]
        stays = chosen[chosen < len(self.nodes)]
        entries, columns = np.divmod(chosen[chosen >= len(self.nodes)] - len(self.nodes), len(symbols))

        children = map(self._child, self.nodes[entries].tolist(), symbols[columns].tolist())
        self.nodes = np.concatenate([self.nodes[stays], np.fromiter(children, dtype=np.int64, count=len(entries))])
        self.last = np.concatenate([self.last[stays], symbols[columns]])
        self.ends_blank = np.concatenate([stay_blank[stays], np.full(len(entries), -np.inf)])
        self.ends_symbol = np.concatenate([stay_symbol[stays], extended[entries, columns]])
        self.added = np.concatenate([self.added[stays], added[entries, columns]])

    def _child(self, parent: int, symbol: int) -> int:
        """Return the node of a prefix and one more symbol; made once, so that a prefix that returns is the same."""
        node = self.children.get((parent, symbol))
        if node is None:
            node = self.children[parent, symbol] = len(self.parents)
            self.parents.append(parent)
            self.symbols.append(symbol)
            if self.scorer is not None:
                self.states.append(self.scorer.advance(self.states[parent], symbol))
                if node == len(self.additions):
                    self.additions = np.concatenate([self.additions, np.zeros_like(self.additions)])
                self.additions[node] = self.scorer.scores(self.states[node])
        return node

    def _spelled(self, node: int) -> list[int]:
        ids = []
        while node:
            ids.append(self.symbols[node])
            node = self.parents[node]
        return ids[::-1]


def best_alignment(log_probs: np.ndarray, ids: list[int]) -> list[int]:
    """Return the frame at which each symbol begins on a labelling's most probable path (Viterbi); log_probs (T, V)."""
    spans = ctc_spans(log_probs, ids)
    assert spans is not None, "a hypothesis of the beam search has a path"
    return [span.first for span in spans]
