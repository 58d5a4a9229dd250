"""k-means side by side with the predecessor's call of scikit-learn, and with faiss.

    python -m tests.bench.kmeans [--frames 30000] [--dim 768] [--clusters 500] [--n-init 20] [--rounds 1] [--threads 1]

The frames wander as hidden layers do, without clear clusters. Prints markdown; a ratio is that of CPU times of a round
in which all run in turn, in this process. `--n-init 1` is scikit-learn without the predecessor's 20 beginnings.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.signal import lfilter
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from core.distributed import init
from core.units.kmeans import Codebook, FrameArray, KMeansConfig, fit_kmeans


def wandering_frames(num_frames: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """A nonlinear image of 64 slow processes, with noise: (num_frames, dim) float32."""
    rng = np.random.default_rng(seed)
    slow = lfilter([1], [1, -0.9], rng.standard_normal((num_frames, 64)), axis=0) * np.arange(1, 65) ** -0.5
    bent = np.tanh(slow @ rng.standard_normal((64, 256)) / 8)
    noise = rng.standard_normal((num_frames, dim), dtype=np.float32)
    return (bent @ rng.standard_normal((256, dim)) / 16 + 0.1 * noise).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("frames", 30_000), ("dim", 768), ("clusters", 500), ("n-init", 20), ("rounds", 1)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    frames = wandering_frames(arguments.frames, arguments.dim)
    num_clusters, alone = arguments.clusters, init(device="cpu")

    def ours() -> np.ndarray:
        config = KMeansConfig(num_clusters=num_clusters)
        return fit_kmeans(FrameArray(frames), config, seed=0, ranks=alone).codebook.centers.numpy()

    def predecessor() -> np.ndarray:
        rival = MiniBatchKMeans(
            num_clusters, init="k-means++", max_iter=100, batch_size=10000, tol=0.0, max_no_improvement=100,
            n_init=arguments.n_init, reassignment_ratio=0.0, compute_labels=False, random_state=0,
        )  # fmt: skip
        return rival.fit(frames).cluster_centers_

    def faiss_kmeans() -> np.ndarray:
        import faiss

        faiss.omp_set_num_threads(arguments.threads)
        rival = faiss.Kmeans(arguments.dim, num_clusters, niter=20, max_points_per_centroid=len(frames))
        rival.train(frames)
        return rival.centroids

    cases = {
        "ours": ours,
        f"scikit-learn as the predecessor calls it, n_init {arguments.n_init}": predecessor,
        "faiss, 20 iterations": faiss_kmeans,
    }
    with threadpool_limits(arguments.threads):
        results = [{name: measured(case, frames) for name, case in cases.items()} for _ in range(arguments.rounds)]
    print(f"# k-means of {arguments.frames:,} x {arguments.dim}, {num_clusters} clusters\n")
    print("| | CPU s | time / ours: median (min to max) | inertia / ours |\n|---|---|---|---|")
    for name in cases:
        seconds = statistics.median(round_[name][0] for round_ in results)
        ratios = sorted(round_[name][0] / round_["ours"][0] for round_ in results)
        inertia = statistics.median(round_[name][1] / round_["ours"][1] for round_ in results)
        spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        print(f"| {name} | {seconds:.2f} | {spread} | {inertia:.4f} |")


def measured(fit: Callable[[], np.ndarray], frames: np.ndarray) -> tuple[float, float]:
    """CPU seconds of a fit, and the inertia of its centers over all frames."""
    begin = time.process_time()
    centers = fit()
    seconds = time.process_time() - begin
    _, distances = Codebook(torch.from_numpy(centers)).nearest(torch.from_numpy(frames))
    return seconds, float(distances.sum(dtype=torch.float64))


if __name__ == "__main__":
    main()
