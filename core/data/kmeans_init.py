"""Where k-means begins: greedy k-means++ (Arthur and Vassilvitskii 2007) on frames in memory."""

import math

import numpy as np
import torch
from torch import Tensor

_POLISH_ITERATIONS = 5


@torch.no_grad()
def k_means_plus_plus(frames: Tensor, *, num_clusters: int, num_inits: int, rng: np.random.Generator) -> Tensor:
    """frames (M, D) fp32 -> centers (N, D): the best of `num_inits` beginnings after a few iterations of Lloyd's."""
    best, least = None, math.inf
    for _ in range(num_inits):
        centers = _spread(frames, num_clusters=num_clusters, rng=rng)
        inertia = 0.0
        if num_inits > 1:
            centers, inertia = _polished(frames, centers)
        if best is None or inertia < least:
            best, least = centers, inertia
    assert best is not None
    return best


def _spread(frames: Tensor, *, num_clusters: int, rng: np.random.Generator) -> Tensor:
    """Frames chosen one by one, each with a probability as its squared distance from those before; of a few candidates
    the one that lowers the sum of distances most."""
    num_trials = 2 + int(math.log(num_clusters))
    squares = frames.square().sum(1)  # (M,)
    chosen = [int(rng.integers(len(frames)))]
    nearest = _distances(frames, squares, chosen)[0]  # (M,)
    while len(chosen) < num_clusters:
        running = nearest.double().cumsum(0)
        thresholds = torch.from_numpy(rng.random(num_trials)) * running[-1]
        candidates = torch.searchsorted(running, thresholds).clamp(max=len(frames) - 1).tolist()
        distances = torch.minimum(_distances(frames, squares, candidates), nearest)  # (trials, M)
        best = int(distances.sum(1, dtype=torch.float64).argmin())
        chosen.append(candidates[best])
        nearest = distances[best]
    return frames[chosen]


def _distances(frames: Tensor, squares: Tensor, rows: list[int]) -> Tensor:
    """Squared distances (len(rows), M) of all frames from some of them."""
    distances = torch.addmm(squares, frames[rows], frames.T, alpha=-2)
    return distances.add_(squares[rows][:, None]).clamp_(min=0)


def _polished(frames: Tensor, centers: Tensor) -> tuple[Tensor, float]:
    """Centers after a few iterations, and the inertia before the last; empty clusters stay where they are."""
    inertia = math.inf
    squares = frames.square().sum(1)
    for _ in range(_POLISH_ITERATIONS):
        scores = torch.addmm(centers.square().sum(1) / 2, frames, centers.T, alpha=-1)
        least, numbers = scores.min(1)
        inertia = float((2 * least + squares).sum(dtype=torch.float64))
        counts = torch.bincount(numbers, minlength=len(centers))[:, None]
        means = torch.zeros_like(centers).index_add_(0, numbers, frames) / counts.clamp(min=1)
        centers = torch.where(counts > 0, means, centers)
    return centers, inertia
