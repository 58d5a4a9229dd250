"""k-means against scikit-learn; on several ranks, from disk and from memory; what is written and refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import pairwise_distances_argmin_min

from core.distributed import Ranks, init
from core.units import kmeans
from core.units.feature_store import FrameShards, write_features
from core.units.kmeans import Codebook, Fit, FrameArray, KMeansConfig, fit_kmeans
from tests.closeness import assert_close
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.numerics

ALONE = init(device="cpu")


def blobs(num_frames: int = 6000, *, centers: int = 30, dim: int = 16, spread: float = 1.5) -> np.ndarray:
    frames, _ = make_blobs(num_frames, dim, centers=centers, cluster_std=spread, random_state=3)
    return (frames + 20).astype(np.float32)  # far from 0, as cepstra are


def speechlike(num_frames: int, *, dim: int = 39) -> np.ndarray:
    """Frames that wander without clusters: the hard case."""
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((num_frames, 12)) * np.arange(1, 13) ** -0.5
    walk = np.zeros_like(steps)
    for t in range(1, num_frames):
        walk[t] = 0.9 * walk[t - 1] + steps[t]
    return (np.tanh(walk @ rng.standard_normal((12, dim))) + 0.1 * rng.standard_normal((num_frames, dim))).astype("f4")


def fit(frames: np.ndarray, **values: Any) -> Fit:
    return fit_kmeans(FrameArray(frames), KMeansConfig(**values), seed=0, ranks=ALONE)


def test_on_blobs_it_is_as_good_as_full_kmeans() -> None:
    frames = blobs()
    ours = fit(frames, num_clusters=30, num_inits=4)
    best = KMeans(30, n_init=10, random_state=0).fit(frames).inertia_
    assert ours.inertia <= 1.005 * best
    _, distances = pairwise_distances_argmin_min(frames, ours.codebook.centers.numpy(), metric="sqeuclidean")
    assert ours.inertia == pytest.approx(distances.sum(), rel=1e-4)


def test_without_clusters_it_is_as_good_as_the_predecessors_call() -> None:
    frames = speechlike(8000)
    rival = MiniBatchKMeans(
        50, max_iter=100, batch_size=10000, tol=0.0, max_no_improvement=100, n_init=20, reassignment_ratio=0.0,
        compute_labels=False, random_state=0,
    ).fit(frames)  # fmt: skip
    assert fit(frames, num_clusters=50).inertia <= 1.00 * -rival.score(frames)
    mini = fit(frames, num_clusters=50, batch_frames=2000, max_iterations=30)
    assert mini.inertia <= 1.02 * -rival.score(frames)


def test_labels_are_those_of_scikit_learn_for_the_same_centers() -> None:
    frames = speechlike(5000)
    rival = KMeans(40, n_init=1, max_iter=5, random_state=0).fit(frames)
    ours = Codebook(torch.from_numpy(rival.cluster_centers_)).assign(torch.from_numpy(frames).view(50, 100, 39))
    assert ours.shape == (50, 100)
    assert np.array_equal(ours.flatten().numpy(), rival.predict(frames))


def test_an_iteration_is_lloyds() -> None:
    """From the same beginning, scikit-learn ends at the same centers."""
    frames = speechlike(4000)
    seen: list[float] = []
    config = KMeansConfig(num_clusters=20, max_iterations=300, tolerance=0.0)
    ours = fit_kmeans(FrameArray(frames), config, seed=0, ranks=ALONE, progress=lambda i, value: seen.append(value))
    shift, begin = kmeans._initial_centers(FrameArray(frames), config, seed=0)
    rival = KMeans(20, init=begin + shift, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(frames)
    assert_close(ours.codebook.centers, rival.cluster_centers_)
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(seen))


def _fit_on_ranks(ranks: Ranks, paths: list[Path], batch_frames: int | None) -> tuple[np.ndarray, float]:
    kmeans.CHUNK_FRAMES = 512
    config = KMeansConfig(num_clusters=25, batch_frames=batch_frames, max_iterations=8, init_frames=1000)
    found = fit_kmeans(FrameShards(paths), config, seed=5, ranks=ranks)
    return found.codebook.centers.numpy(), found.inertia


@pytest.mark.parametrize("batch_frames", [None, 9000])
def test_ranks_and_shards_change_nothing(batch_frames: int | None, tmp_path: Path, monkeypatch: Any) -> None:
    frames = speechlike(4000).astype(np.float16)
    paths = [tmp_path / f"{number}.npy" for number in range(3)]
    for path, part in zip(paths, np.array_split(frames, [700, 2500]), strict=True):
        write_features(path, [part], dim=39)
    monkeypatch.setattr(kmeans, "CHUNK_FRAMES", 512)
    monkeypatch.setattr(kmeans, "_BLOCK_FRAMES", 256)
    config = KMeansConfig(num_clusters=25, batch_frames=batch_frames, max_iterations=8, init_frames=1000)
    in_memory = fit_kmeans(FrameArray(frames), config, seed=5, ranks=ALONE)
    alone = fit_kmeans(FrameShards(paths), config, seed=5, ranks=ALONE)
    assert torch.equal(alone.codebook.centers, in_memory.codebook.centers) and alone.inertia == in_memory.inertia
    for centers, inertia in run_on_ranks(_fit_on_ranks, 2, paths, batch_frames):
        assert_close(centers, alone.codebook.centers, rel=1e-6)
        assert inertia == pytest.approx(alone.inertia, rel=1e-6)


def test_a_cluster_that_loses_all_frames_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = blobs(600, centers=6, dim=4)
    begin = np.concatenate([frames[:4], np.full((2, 4), 1e4, np.float32)])  # nobody is near the last two
    monkeypatch.setattr(kmeans, "_initial_centers", lambda *args, **values: (np.zeros(4, np.float32), begin))
    ours = fit(frames, num_clusters=6)
    counts = torch.bincount(ours.codebook.assign(torch.from_numpy(frames)), minlength=6)
    assert (counts > 0).all()


def test_a_codebook_is_read_back_with_its_facts(tmp_path: Path) -> None:
    codebook = Codebook(torch.randn(7, 3))
    codebook.save(tmp_path / "km.safetensors", features="hubert", layer=6)
    loaded, facts = Codebook.load(tmp_path / "km.safetensors")
    assert torch.equal(loaded.centers, codebook.centers) and facts == {"features": "hubert", "layer": 6}
    assert loaded.hash == codebook.hash != Codebook(codebook.centers + 1e-6).hash
    (tmp_path / "km.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="no codebook"):
        Codebook.load(tmp_path / "km.safetensors")


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="9 frames cannot make num_clusters=10"):
        fit(np.zeros((9, 2), np.float32), num_clusters=10)
