"""k-means of frames too many for memory: read in chunks from disk, by one or several ranks, on any device.

    fit = fit_kmeans(FrameShards(paths), config, seed=seed, ranks=ranks)
    fit.codebook.save(path)
    codebook, facts = Codebook.load(path)
    labels = codebook.assign(features)

Deterministic: the chunks are the same on any number of ranks, and their sums are added in fp64.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from core.config.schema import section
from core.distributed import Ranks
from core.rundir.whole_files import appears_whole
from core.seeding import generator

CHUNK_FRAMES = 65_536
_BLOCK_FRAMES = 4096  # frames x clusters of distances at a time: they should stay in the cache
_SPLIT = 1 / 1024
_POLISH_ITERATIONS = 5

Progress = Callable[[int, float], None]


@section
class KMeansConfig:
    """Settings of Lloyd's algorithm from k-means++ (Arthur and Vassilvitskii 2007), greedy as in scikit-learn.

    The beginning is the best of `num_inits` on `init_frames` frames. Each iteration reads all frames, until the inertia
    falls by less than `tolerance` of itself. With `batch_frames` an iteration is so many random frames instead
    (Sculley 2010), until the mean inertia has not improved for `patience` of them.
    """

    num_clusters: Annotated[int, Field(ge=1, le=32768)]
    max_iterations: Annotated[int, Field(ge=1)] = 100
    tolerance: Annotated[float, Field(ge=0)] = 1e-3
    num_inits: Annotated[int, Field(ge=1)] = 1
    init_frames: Annotated[int, Field(ge=1)] = 5_000
    batch_frames: Annotated[int, Field(ge=1)] | None = None
    patience: Annotated[int, Field(ge=1)] = 100


class FrameSource(Protocol):
    """Frames by number, (rows, dim) of any floating type: a memory map (FrameShards) or an array (FrameArray)."""

    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> np.ndarray: ...
    def take(self, rows: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class FrameArray:
    """Frames in memory."""

    frames: np.ndarray  # (M, D)

    @property
    def dim(self) -> int:
        return int(self.frames.shape[1])

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.frames[start:stop]

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.frames[rows]


class Codebook:
    """Cluster centers; a frame belongs to the nearest."""

    def __init__(self, centers: Tensor) -> None:
        """Keep centers (N, D) in fp32 on their device."""
        self.centers = centers.float().contiguous()
        self._half_squares = self.centers.square().sum(1) / 2  # (N,)

    def to(self, device: torch.device) -> "Codebook":
        return Codebook(self.centers.to(device))

    def assign(self, frames: Tensor) -> Tensor:
        """Map frames (..., D) to the number of the nearest center (...), int64."""
        return self.nearest(frames.reshape(-1, frames.size(-1)))[0].view(frames.shape[:-1])

    @torch.no_grad()
    def nearest(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map frames (M, D) to the nearest center's number (M,) and squared distance (M,)."""
        numbers, distances = [], []
        for block in frames.float().split(_BLOCK_FRAMES):
            scores = torch.addmm(self._half_squares, block, self.centers.T, alpha=-1)  # |c|^2 / 2 - x c
            least, number = scores.min(1)
            numbers.append(number)
            distances.append((2 * least + block.square().sum(1)).clamp_(min=0))
        return torch.cat(numbers), torch.cat(distances)

    @property
    def hash(self) -> str:
        """The hash of the centers, for the card of labels."""
        return hashlib.blake2b(self.centers.cpu().numpy().tobytes(), digest_size=16).hexdigest()

    def save(self, path: Path, **facts: object) -> None:
        """Write safetensors, with `facts` (features, layer, checkpoint...) as JSON in the metadata."""
        content = save({"centers": self.centers.cpu()}, metadata={"facts": json.dumps(facts)})
        with appears_whole(path) as file:
            file.write(content)

    @classmethod
    def load(cls, path: Path) -> tuple["Codebook", dict[str, object]]:
        """Read what `save` wrote: centers and facts. ValueError for another or a damaged file."""
        try:
            with safe_open(path, framework="pt") as file:
                return cls(file.get_tensor("centers")), json.loads((file.metadata() or {})["facts"])
        except (OSError, SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: no codebook ({error}); fit it again") from None


@dataclass(frozen=True)
class Fit:
    """The centers, the sum of squared distances of all frames to them, and the iterations it took."""

    codebook: Codebook
    inertia: float
    num_iterations: int


def fit_kmeans(
    source: FrameSource, config: KMeansConfig, *, seed: int, ranks: Ranks, progress: Progress | None = None
) -> Fit:
    """Cluster the frames of `source`, which all ranks see alike. ValueError where there are too few.

    `progress(iteration, mean squared distance)` is called on every rank.
    """
    if len(source) < config.num_clusters:
        raise ValueError(f"{len(source)} frames cannot make num_clusters={config.num_clusters} clusters; give more")
    shift, centers = ranks.from_first(_initial_centers(source, config, seed=seed) if ranks.is_first else None)
    search = _Search(source, config, seed=seed, ranks=ranks, shift=torch.from_numpy(shift).to(ranks.device))
    start = torch.from_numpy(centers).to(ranks.device)
    run = search.lloyd if config.batch_frames is None else search.mini_batches
    return run(start, progress or (lambda iteration, distance: None))


def _initial_centers(source: FrameSource, config: KMeansConfig, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean of the sampled frames, centers around it) in fp32."""
    rng = generator(seed, "kmeans.init")
    num = min(len(source), max(config.init_frames, config.num_clusters))
    sample = source.take(np.sort(rng.choice(len(source), num, replace=False))).astype(np.float32)
    shift = sample.mean(axis=0)
    found = k_means_plus_plus(
        torch.from_numpy(sample - shift), num_clusters=config.num_clusters, num_inits=config.num_inits, rng=rng
    )
    return shift, found.numpy()


@dataclass(frozen=True)
class _Sums:
    """The sums of an iteration for each cluster, over all ranks, in fp64."""

    frames: Tensor  # (N, D), the sum of its frames
    counts: Tensor  # (N,)
    distances: Tensor  # (N,), the sum of their squared distances


@dataclass(frozen=True)
class _Search:
    """A search on frames less `shift`: distances are differences of squares, and small numbers differ exactly."""

    source: FrameSource
    config: KMeansConfig
    seed: int
    ranks: Ranks
    shift: Tensor

    def lloyd(self, centers: Tensor, progress: Progress) -> Fit:
        before = float("inf")
        for iteration in range(1, self.config.max_iterations + 1):
            sums = self._all_frames(centers)
            inertia = float(sums.distances.sum())
            progress(iteration, inertia / len(self.source))
            if before - inertia <= self.config.tolerance * inertia and not (sums.counts == 0).any():
                return self._fit(centers, inertia, iteration)
            before = inertia
            centers = _means(sums, centers)
        return self._fit(centers, float(self._all_frames(centers).distances.sum()), self.config.max_iterations)

    def mini_batches(self, centers: Tensor, progress: Progress) -> Fit:
        assert self.config.batch_frames is not None
        seen = torch.zeros(len(centers), dtype=torch.float64, device=centers.device)
        smooth, best, best_at, iteration = None, float("inf"), 0, 0
        share = min(1.0, 2 * self.config.batch_frames / (len(self.source) + 1))
        for iteration in range(1, self._most_batches() + 1):
            rows = generator(self.seed, "kmeans.batch", iteration).integers(len(self.source), size=self._batch_size())
            parts = np.array_split(np.sort(rows), -(-len(rows) // _BLOCK_FRAMES))
            own = parts[self.ranks.rank :: self.ranks.world_size]
            sums = self._sums(centers, (self.source.take(part) for part in own))
            distance = float(sums.distances.sum()) / len(rows)
            smooth = distance if smooth is None else smooth + share * (distance - smooth)
            progress(iteration, smooth)
            seen += sums.counts
            step = (sums.frames - sums.counts[:, None] * centers) / seen.clamp(min=1)[:, None]
            centers = (centers + step).float()
            if smooth < best:
                best, best_at = smooth, iteration
            elif iteration - best_at >= self.config.patience:
                break
        return self._fit(centers, float(self._all_frames(centers).distances.sum()), iteration)

    def _batch_size(self) -> int:
        return min(self.config.batch_frames or 0, len(self.source))

    def _most_batches(self) -> int:
        return self.config.max_iterations * -(-len(self.source) // self._batch_size())

    def _all_frames(self, centers: Tensor) -> _Sums:
        """Sum over all frames; each rank reads every so-manieth chunk."""
        starts = range(0, len(self.source), CHUNK_FRAMES)[self.ranks.rank :: self.ranks.world_size]
        return self._sums(centers, (self.source.read(start, start + CHUNK_FRAMES) for start in starts))

    def _sums(self, centers: Tensor, chunks: Iterator[np.ndarray]) -> _Sums:
        num, dim = centers.shape
        total = torch.zeros(num, dim + 2, dtype=torch.float64, device=centers.device)
        codebook = Codebook(centers)
        for chunk in chunks:
            for block in torch.from_numpy(np.ascontiguousarray(chunk)).to(centers.device).split(_BLOCK_FRAMES):
                frames = block.float() - self.shift
                numbers, distances = codebook.nearest(frames)
                more = torch.cat([frames, torch.ones_like(distances)[:, None], distances[:, None]], dim=1)
                total += torch.zeros(num, dim + 2, device=centers.device).index_add_(0, numbers, more)
        if self.ranks.votes is not None:
            on_host = total.cpu()
            dist.all_reduce(on_host, group=self.ranks.votes)
            total = on_host.to(centers.device)
        return _Sums(total[:, :dim], total[:, dim], total[:, dim + 1])

    def _fit(self, centers: Tensor, inertia: float, num_iterations: int) -> Fit:
        return Fit(Codebook(centers + self.shift), inertia, num_iterations)


def _means(sums: _Sums, centers: Tensor) -> Tensor:
    """Return the mean of each cluster's frames; an empty cluster takes half of the one with the largest inertia."""
    means = (sums.frames / sums.counts.clamp(min=1)[:, None]).float()
    empty = (sums.counts == 0).nonzero().flatten().tolist()
    widest = sums.distances.argsort(descending=True, stable=True).tolist()
    sign = 1 - 2 * (torch.arange(centers.size(1), device=centers.device) % 2)
    for number, other in zip(empty, widest, strict=False):
        spread = (sums.distances[other] / sums.counts[other].clamp(min=1)).sqrt().float() * _SPLIT
        means[number] = means[other] + sign * spread
        means[other] = means[other] - sign * spread
    return means


@torch.no_grad()
def k_means_plus_plus(frames: Tensor, *, num_clusters: int, num_inits: int, rng: np.random.Generator) -> Tensor:
    """Map frames (M, D) fp32 to centers (N, D): the best of `num_inits` beginnings after some of Lloyd's iterations."""
    best, least = None, math.inf
    for _ in range(num_inits):
        centers = _draw_seeds(frames, num_clusters=num_clusters, rng=rng)
        inertia = 0.0
        if num_inits > 1:
            centers, inertia = _refined(frames, centers)
        if best is None or inertia < least:
            best, least = centers, inertia
    assert best is not None
    return best


def _draw_seeds(frames: Tensor, *, num_clusters: int, rng: np.random.Generator) -> Tensor:
    """Choose frames one by one, each with a probability as its squared distance from those before; of a few
    candidates the one that lowers the sum of distances most.
    """
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
    """Return squared distances (len(rows), M) of all frames from some of them."""
    distances = torch.addmm(squares, frames[rows], frames.T, alpha=-2)
    return distances.add_(squares[rows][:, None]).clamp_(min=0)


def _refined(frames: Tensor, centers: Tensor) -> tuple[Tensor, float]:
    """Return centers after a few iterations, and the inertia before the last; empty clusters stay where they are."""
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
