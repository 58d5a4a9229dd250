"""Which frames a model must guess: spans at random places, the same number of frames in every row of a batch.

The law is fairseq's and torchaudio's `_compute_mask_indices` (static length, overlap allowed), which draws row by row;
here the rows of a batch are drawn together.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from core.config.schema import section


@section
class MaskConfig:
    """The masks of a row of T frames: int(probability T / length + u) spans, u uniform from 0 to 1, drawn once a row.
    Spans may overlap, so that the share of masked frames is lower: about 1 - exp(-probability).
    """

    probability: Annotated[float, Field(gt=0, le=1)] = 0.8
    length: Annotated[int, Field(ge=1)] = 10
    min_spans: Annotated[int, Field(ge=1)] = 2


def span_mask(num_frames: np.ndarray, *, config: MaskConfig, rng: np.random.Generator) -> np.ndarray:
    """Map num_frames (B,) int to masked frames (B, K) int64, ascending in each row, all within the row.

    Starts are drawn without replacement from [0, T - length); K is what the row with the fewest masked frames has,
    and the other rows lose frames at random. (T and length are frames here; of channels it works as well.)
    """
    length, sizes = config.length, np.asarray(num_frames)
    num_rows, longest = len(sizes), int(sizes.max())
    spans = (config.probability * sizes / length + rng.random(num_rows)).astype(np.int64)
    spans = np.maximum(spans, config.min_spans)  # (B,)
    places = np.where(sizes - length > spans, sizes - length, spans + 1)  # (B,) starts to choose from
    keys = rng.random((num_rows, int(places.max())), dtype=np.float32)
    keys[np.arange(keys.shape[1]) >= places[:, None]] = 2.0
    most = int(spans.max())
    starts = np.argpartition(keys, most - 1, axis=1)[:, :most]  # the smallest keys; of a row with fewer spans the first
    rank = np.take_along_axis(keys, starts, axis=1).argsort(axis=1).argsort(axis=1)
    is_start = rank < spans[:, None]
    # +1 where a span begins, -1 where it ends: the running sum counts the spans over a frame
    edges = np.zeros((num_rows, longest + length + most + 2), np.int32)
    rows = np.broadcast_to(np.arange(num_rows)[:, None], starts.shape)[is_start]
    np.add.at(edges, (rows, starts[is_start]), 1)
    np.add.at(edges, (rows, starts[is_start] + length), -1)
    is_masked = (edges.cumsum(axis=1)[:, :longest] > 0) & (np.arange(longest) < sizes[:, None])  # (B, T)
    return _equal_rows(is_masked, rng)


def _equal_rows(is_masked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the numbers of the True of each row (B, T), in every row as many as in the poorest: (B, K)."""
    num_kept = int(is_masked.sum(axis=1).min())
    if num_kept == 0:
        return np.zeros((len(is_masked), 0), np.int64)
    keys = rng.random(is_masked.shape, dtype=np.float32)
    keys[~is_masked] = 2.0
    return np.sort(np.argpartition(keys, num_kept - 1, axis=1)[:, :num_kept], axis=1).astype(np.int64)
