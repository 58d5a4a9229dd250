"""How good clusters of frames are as units of speech, without training on them: usage, and what they say of phones.

    report = cluster_report(labels, phones, num_clusters=100, seed=0)
    print(report.describe()); draw_report(report, Path("clusters.png"))
    pnmi_gain(labels_of_layer_6, labels_of_mfcc, phones, seed=0)       # is one better than the other?

Measures of Hsu et al. 2021 (arXiv:2106.07447, section III-B). The intervals are bootstrapped over utterances (Efron
1979): frames of one utterance are not independent. They are basic (pivotal) ones (Davison and Hinkley 1997, section
5.2): the PNMI of few utterances is above that of endless speech, and resampling them raises it as much again, so that
2 PNMI - PNMI of a resample is right on average, where the resampled values themselves are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from core.seeding import generator

Labels = Sequence[np.ndarray]  # (T,) integers for each utterance
Phones = Sequence[Sequence[str | None]]  # as many for each; None: not said which

_NUM_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 50


class Estimate(NamedTuple):
    """A value of the utterances at hand, and the 95 % interval of endless speech: biased, a PNMI may lie above it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class PhoneMeasures:
    """Measures with `joint[p, c]`: frames of phone p in cluster c. Purity of phones: the share of frames whose phone is
    the most frequent of their cluster; of clusters: the other way round. PNMI: I(phone; cluster) / H(phone).
    """

    symbols: list[str]
    joint: np.ndarray  # (P, N) int64
    phone_purity: float
    cluster_purity: float
    pnmi: Estimate


@dataclass(frozen=True)
class ClusterReport:
    """The usage of clusters, and `entropy_bits` of it; the largest possible is log2(num_clusters)."""

    num_clusters: int
    num_utterances: int
    counts: np.ndarray  # (N,) int64
    entropy_bits: float
    phones: PhoneMeasures | None

    @property
    def num_used(self) -> int:
        return int((self.counts > 0).sum())

    @property
    def unigram_accuracy(self) -> float:
        """The accuracy of guessing the most frequent cluster for every frame."""
        return float(self.counts.max() / max(1, self.counts.sum()))

    def describe(self) -> str:
        """Return the report in lines, for the log and the report of a run."""
        lines = [
            f"{self.counts.sum():,} frames of {self.num_utterances:,} utterances in {self.num_used} of "
            f"{self.num_clusters} clusters",
            f"entropy {self.entropy_bits:.2f} bits of at most {np.log2(self.num_clusters):.2f}; the most frequent "
            f"cluster has {self.unigram_accuracy:.2%} of the frames",
        ]
        if self.phones is not None:
            pnmi = self.phones.pnmi
            lines.append(
                f"PNMI {pnmi.value:.3f} (of endless speech {pnmi.low:.3f} to {pnmi.high:.3f}), phone purity "
                f"{self.phones.phone_purity:.3f}, cluster purity {self.phones.cluster_purity:.3f}, "
                f"{len(self.phones.symbols)} phones"
            )
        return "\n".join(lines)

    def scores(self, prefix: str) -> dict[str, float]:
        """Return flat names to numbers, as scores.json has them."""
        found = {"clusters_used": float(self.num_used), "entropy_bits": self.entropy_bits}
        if self.phones is not None:
            pnmi = self.phones.pnmi
            found |= {"pnmi": pnmi.value, "pnmi_low": pnmi.low, "pnmi_high": pnmi.high}
            found |= {"phone_purity": self.phones.phone_purity, "cluster_purity": self.phones.cluster_purity}
        return {f"{prefix}{name}": value for name, value in found.items()}


def cluster_report(labels: Labels, phones: Phones | None, *, num_clusters: int, seed: int) -> ClusterReport:
    """Compute the report. ValueError if labels and phones differ in number, or no frame has a phone."""
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=num_clusters)
    measures = None if phones is None else _phone_measures(labels, phones, num_clusters=num_clusters, seed=seed)
    entropy_bits = float(_entropy(counts[None])[0] / np.log(2))
    return ClusterReport(num_clusters, len(labels), counts, entropy_bits, measures)


def pnmi_gain(better: Labels, worse: Labels, phones: Phones, *, seed: int) -> Estimate:
    """Return PNMI of a labelling less that of another of the same frames; both see the same resampled utterances."""
    symbols = _symbols(phones)
    draws = _resamples(len(phones), seed=seed)
    estimates, values = [], []
    for labels in (better, worse):
        num_clusters = 1 + max(int(one.max(initial=0)) for one in labels)
        tables = _tables(labels, phones, symbols, num_clusters=num_clusters)
        shape = (len(symbols), num_clusters)
        estimates.append(_pnmi(np.asarray(tables.sum(axis=0)).reshape(1, *shape))[0])
        values.append(_resampled_pnmi(tables, draws, shape))
    return _interval(estimates[0] - estimates[1], values[0] - values[1])


def draw_report(report: ClusterReport, path: Path) -> None:
    """Draw how much each cluster is used, and which phones its frames are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 1 if report.phones is None else 2, figsize=(12, 5), squeeze=False)
    share = np.sort(report.counts)[::-1] / max(1, report.counts.sum())
    axes[0, 0].bar(np.arange(len(share)), share, width=1.0)
    axes[0, 0].set(xlabel="cluster, by frequency", ylabel="share of frames", title=f"{report.entropy_bits:.2f} bits")
    if report.phones is not None:
        joint = report.phones.joint / np.maximum(1, report.phones.joint.sum(axis=0))  # (P, N): p(phone | cluster)
        order = np.lexsort((-joint.max(axis=0), joint.argmax(axis=0)))
        axes[0, 1].imshow(joint[:, order], aspect="auto", cmap="magma", vmin=0, vmax=1)
        axes[0, 1].set_yticks(np.arange(len(report.phones.symbols)), report.phones.symbols, fontsize=5)
        axes[0, 1].set(xlabel="cluster, by its phone", title=f"p(phone | cluster), PNMI {report.phones.pnmi.value:.3f}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _phone_measures(labels: Labels, phones: Phones, *, num_clusters: int, seed: int) -> PhoneMeasures:
    symbols = _symbols(phones)
    tables = _tables(labels, phones, symbols, num_clusters=num_clusters)
    shape = (len(symbols), num_clusters)
    joint = np.asarray(tables.sum(axis=0)).reshape(shape)
    resampled = _resampled_pnmi(tables, _resamples(len(labels), seed=seed), shape)
    value, low, high = _interval(_pnmi(joint[None])[0], resampled)
    return PhoneMeasures(
        symbols=symbols,
        joint=joint,
        phone_purity=float(joint.max(axis=0).sum() / joint.sum()),
        cluster_purity=float(joint.max(axis=1).sum() / joint.sum()),
        pnmi=Estimate(value, low=min(1.0, max(0.0, low)), high=min(1.0, max(0.0, high))),
    )


def _interval(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(float(value), low=float(2 * value - high), high=float(2 * value - low))


def _symbols(phones: Phones) -> list[str]:
    found = sorted({symbol for one in phones for symbol in one if symbol is not None})
    if not found:
        raise ValueError("no frame has a phone; PNMI needs alignments")
    return found


def _tables(labels: Labels, phones: Phones, symbols: list[str], *, num_clusters: int) -> csr_matrix:
    """Count how often each pair of phone and cluster occurs in each utterance: (utterances, P N) int64."""
    number_of = {symbol: number for number, symbol in enumerate(symbols)}
    columns, rows = [], []
    for utterance, (own_labels, own_phones) in enumerate(zip(labels, phones, strict=True)):
        if len(own_labels) != len(own_phones):
            raise ValueError(f"utterance {utterance} has {len(own_labels)} labels and {len(own_phones)} phones")
        numbers = np.array([number_of.get(symbol, -1) if symbol is not None else -1 for symbol in own_phones], np.int64)
        pairs = (numbers * num_clusters + np.asarray(own_labels, np.int64))[numbers >= 0]
        columns.append(pairs)
        rows.append(np.full(len(pairs), utterance))
    ones = np.ones(sum(map(len, columns)), np.int64)
    places = (np.concatenate(rows), np.concatenate(columns))
    return csr_matrix((ones, places), shape=(len(labels), len(symbols) * num_clusters))


def _resamples(num_utterances: int, *, seed: int) -> np.ndarray:
    """Return (resamples, utterances): how often each utterance is drawn."""
    shares = np.full(num_utterances, 1 / num_utterances)
    return generator(seed, "cluster_report.bootstrap").multinomial(num_utterances, shares, size=_NUM_RESAMPLES)


def _resampled_pnmi(tables: csr_matrix, draws: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    values = []
    for start in range(0, len(draws), _RESAMPLES_AT_ONCE):
        joint = (tables.T @ draws[start : start + _RESAMPLES_AT_ONCE].T).T  # (resamples, P N)
        values.append(_pnmi(joint.reshape(-1, *shape)))
    return np.concatenate(values)


def _pnmi(joint: np.ndarray) -> np.ndarray:
    """Map counts (R, P, N) to (R,): (H(P) + H(N) - H(P, N)) / H(P); 0 where there is but one phone."""
    of_phones = _entropy(joint.sum(axis=2))
    information = of_phones + _entropy(joint.sum(axis=1)) - _entropy(joint.reshape(len(joint), -1))
    return np.where(of_phones > 0, information / np.where(of_phones > 0, of_phones, 1), 0.0)


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Map counts (R, M) to (R,) entropies in nats: ln n - sum_m c ln c / n."""
    total = np.maximum(1, counts.sum(axis=1))
    return np.log(total) - (counts * np.log(np.maximum(1, counts))).sum(axis=1) / total
