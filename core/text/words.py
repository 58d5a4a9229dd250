"""The words of a cut and when each is said: from its alignment where it has one, else guessed from the letters.

An alignment is what lhotse calls so: `supervision.alignment["word"]`, items of symbol, start, duration, with times that
count from the cut's beginning. `prepare` of csa_stage1 makes them; LibriSpeech's come by `manifests.librispeech`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

SILENCES = frozenset({"", "<eps>", "<sil>", "sil", "sp"})  # how aligners name what is no word


class Words(NamedTuple):
    """Words in the order of time, none overlapping the next. `is_aligned`: by an alignment, not guessed."""

    texts: list[str]
    starts_s: np.ndarray  # (N,) float64
    ends_s: np.ndarray  # (N,) float64
    is_aligned: bool

    def text(self, first: int, last: int) -> str:
        return " ".join(self.texts[first : last + 1])


def words_of(record: Mapping[str, Any]) -> Words:
    """Return the words of a cut, a manifest's line as JSON; of all its supervisions.

    Written as the transcript writes them where it has as many words as the alignment, else as the alignment does.
    """
    found: list[tuple[float, float, str]] = []
    is_aligned = True
    for supervision in record["supervisions"]:
        written = (supervision.get("text") or "").split()
        items = [item for item in (supervision.get("alignment") or {}).get("word", ()) if item[0] not in SILENCES]
        if items:
            texts = written if len(written) == len(items) else [item[0] for item in items]
            found += [(item[1], item[1] + item[2], text) for item, text in zip(items, texts, strict=True)]
        elif written:
            found += guessed_words(written, start_s=supervision["start"], duration_s=supervision["duration"])
            is_aligned = False
    duration_s = float(record["duration"])
    found = sorted((one for one in found if one[1] > 0 and one[0] < duration_s), key=lambda one: one[0])
    starts = np.array([one[0] for one in found], np.float64).clip(0, duration_s)
    ends = np.array([one[1] for one in found], np.float64).clip(0, duration_s)
    middles = (ends[:-1] + starts[1:]) / 2
    overlaps = ends[:-1] > starts[1:]
    ends[:-1][overlaps] = starts[1:][overlaps] = middles[overlaps]
    return Words([one[2] for one in found], starts, np.maximum(starts, ends), is_aligned and bool(found))


def guessed_words(texts: list[str], *, start_s: float, duration_s: float) -> list[tuple[float, float, str]]:
    """Return (start, end, word), as if every letter, and the space behind each word, took equally long."""
    edges = np.cumsum([0.0, *(len(text) + 1 for text in texts)])
    edges_s = start_s + edges / edges[-1] * duration_s
    return list(zip(edges_s[:-1].tolist(), edges_s[1:].tolist(), texts, strict=True))
