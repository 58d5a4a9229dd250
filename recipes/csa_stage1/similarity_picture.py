"""A picture of how near each clip is to each text: what belongs together lies on the diagonal."""

from pathlib import Path

import numpy as np

_MOST = 400  # rows that can be told apart


def draw_similarities(similarities: np.ndarray, order_by: np.ndarray, path: Path) -> None:
    """Draw similarities (N, N) of speech and text; rows and columns are sorted by order_by (N,), e.g. by length.

    Of more than 400 pairs, so many evenly spread.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = np.argsort(order_by, kind="stable")
    order = order[np.linspace(0, len(order) - 1, min(_MOST, len(order))).astype(int)]
    shown = similarities[np.ix_(order, order)]
    own = np.diagonal(similarities)
    others = similarities[~np.eye(len(similarities), dtype=bool)]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), width_ratios=[1, 1.2])
    image = axes[0].imshow(shown, cmap="magma", vmin=min(0.0, float(shown.min())), vmax=1.0)
    axes[0].set(xlabel="text, by the length of its speech", ylabel="speech, by length", title="cosine")
    figure.colorbar(image, ax=axes[0])
    edges = np.linspace(-1, 1, 81)
    axes[1].hist(others, edges, density=True, alpha=0.6, label="speech and another's text")
    axes[1].hist(own, edges, density=True, alpha=0.6, label="speech and its own text")
    axes[1].set(xlabel="cosine", ylabel="density", title=f"mean {own.mean():.2f} of own, {others.mean():.2f} of others")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
