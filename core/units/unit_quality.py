"""How good a model's layers are as units of speech: k-means of each on training speech, PNMI on held-out speech.

    held_out = HeldOut.open(config, grid=grid, seed=seed)
    found = compare({"mfcc": mfcc, "layer_6": hidden}, held_out, rivals=["mfcc"], ranks=ranks)
    print(found.describe())

All features get the same number of clusters, fitted on the same clips, and label the same frames of one grid.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from core.config.schema import section
from core.data.index import ManifestIndex
from core.data.reading import BadSample
from core.distributed import Ranks
from core.seeding import generator
from core.units.cluster_report import ClusterReport, Estimate, Labels, Phones, cluster_report, pnmi_gain
from core.units.frame_features import FrameFeatures, extract
from core.units.frame_labels import FrameGrid, PhoneInterval, at_grid, phones_of_frames
from core.units.kmeans import Codebook, FrameArray, KMeansConfig, fit_kmeans

logger = logging.getLogger(__name__)


@section
class QualityConfig:
    """The comparison at the end of a training. `manifest`: held-out speech; with alignments ("phone" of a supervision)
    PNMI and purity are known. `layers`: of the trained model. k-means of `num_clusters` sees `fit_s` of the speech
    of `fit` (a manifest), whose features must fit in memory.
    """

    manifest: str
    fit: str
    layers: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    num_clusters: Annotated[int, Field(ge=2)] = 100
    fit_s: Annotated[float, Field(gt=0)] = 3600.0
    batch_s: Annotated[float, Field(gt=0)] = 120.0


@dataclass(frozen=True)
class HeldOut:
    """The held-out utterances and the phones of their frames."""

    config: QualityConfig
    index: ManifestIndex
    phones: Phones | None  # None where the manifest has no alignments
    grid: FrameGrid
    seed: int

    @classmethod
    def open(cls, config: QualityConfig, *, grid: FrameGrid, seed: int) -> "HeldOut":
        index = ManifestIndex.open(Path(config.manifest))
        phones = []
        for row in range(len(index)):
            cut = index.read(row)
            intervals = [
                PhoneInterval(item.start, item.end, item.symbol)
                for supervision in cut.supervisions
                for item in (supervision.alignment or {}).get("phone", [])
            ]
            num_frames = grid.num_frames(round(cut.duration * grid.sample_rate_hz))
            phones.append(phones_of_frames(intervals, num_frames=num_frames, grid=grid))
        is_aligned = any(symbol is not None for one in phones for symbol in one)
        return cls(config, index, phones if is_aligned else None, grid, seed)

    def units(self, features: FrameFeatures, *, ranks: Ranks) -> Labels:
        """Return the cluster of each held-out frame; all ranks call it and get the same."""
        index = ManifestIndex.open(Path(self.config.fit))
        rows = _some(index, fit_s=self.config.fit_s, seed=self.seed)
        step = round(features.rate_hz / self.grid.rate_hz)
        frames = [one[::step].cpu().numpy() for _, one in self._extract(features, index, rows, ranks=ranks)]
        kmeans = KMeansConfig(num_clusters=self.config.num_clusters)
        fit = fit_kmeans(FrameArray(np.concatenate(frames)), kmeans, seed=self.seed, ranks=ranks)
        return self.labels(features, fit.codebook.to(ranks.device), ranks=ranks)

    def labels(self, features: FrameFeatures, codebook: Codebook, *, ranks: Ranks) -> Labels:
        """Return the cluster of each held-out frame by a given codebook; of a clip that cannot be read, none."""
        rows = range(len(self.index))
        found = self._extract(features, self.index, rows, ranks=ranks)
        by_row = {row: codebook.assign(one).cpu().numpy() for row, one in found}
        empty = np.zeros(0, np.int64)
        return [at_grid(by_row.get(row, empty), labels_hz=features.rate_hz, grid=self.grid) for row in rows]

    def report(self, labels: Labels, *, num_clusters: int) -> ClusterReport:
        labels, phones = self.matched(labels)
        return cluster_report(labels, phones, num_clusters=num_clusters, seed=self.seed)

    def gain(self, better: Labels, worse: Labels) -> Estimate:
        """Return PNMI of one labelling less that of another, over the same resampled utterances."""
        (better, phones), (worse, _) = self.matched(better), self.matched(worse)
        assert phones is not None
        return pnmi_gain(better, worse, phones, seed=self.seed)

    def matched(self, labels: Labels) -> tuple[Labels, Phones | None]:
        """Return labels and phones of frames that have both: audio may be a frame shorter than its manifest says."""
        if self.phones is None:
            return labels, None
        lengths = [min(len(one), len(other)) for one, other in zip(labels, self.phones, strict=True)]
        cut_labels = [one[:length] for one, length in zip(labels, lengths, strict=True)]
        return cut_labels, [one[:length] for one, length in zip(self.phones, lengths, strict=True)]

    def _extract(
        self, features: FrameFeatures, index: ManifestIndex, rows: Sequence[int], *, ranks: Ranks
    ) -> Iterator[tuple[int, Tensor]]:
        batch_s = self.config.batch_s
        return extract(features, index, rows, batch_s=batch_s, device=ranks.device, note_bad=_say_bad)


@dataclass(frozen=True)
class Comparison:
    """The report of each kind of features, and what PNMI each gains over each rival, where there are phones."""

    reports: Mapping[str, ClusterReport]
    gains: Mapping[tuple[str, str], Estimate]

    def describe(self) -> str:
        lines = [f"{name}: {line}" for name, one in self.reports.items() for line in one.describe().splitlines()]
        return "\n".join(
            [*lines, *(f"PNMI of {one} less {other}: {gain}" for (one, other), gain in self.gains.items())]
        )

    def scores(self) -> dict[str, float]:
        """Return flat names to numbers, as scores.json has them."""
        found: dict[str, float] = {}
        for name, report in self.reports.items():
            found |= report.scores(f"{name}/")
        for (one, other), gain in self.gains.items():
            prefix = f"{one}/pnmi_over_{other}"
            found |= {prefix: gain.value, f"{prefix}_low": gain.low, f"{prefix}_high": gain.high}
        return found


def compare(
    features: Mapping[str, FrameFeatures],
    held_out: HeldOut,
    *,
    rivals: Sequence[str],
    ranks: Ranks,
) -> Comparison:
    """Compare features; those called `rivals` are what every other must beat."""
    num_clusters = held_out.config.num_clusters
    labels = {name: held_out.units(one, ranks=ranks) for name, one in features.items()}
    reports = {name: held_out.report(one, num_clusters=num_clusters) for name, one in labels.items()}
    gains: dict[tuple[str, str], Estimate] = {}
    for name in features:
        for rival in rivals if held_out.phones is not None and name not in rivals else []:
            gains[name, rival] = held_out.gain(labels[name], labels[rival])
    return Comparison(reports, gains)


def _say_bad(bad: BadSample) -> None:
    logger.warning("left out: %s", bad)


def _some(index: ManifestIndex, *, fit_s: float, seed: int) -> list[int]:
    """Choose clips in a random order: the first, and as many more as have not more than `fit_s` together."""
    order = generator(seed, "quality.fit").permutation(len(index))
    total_s = np.cumsum(index.durations_s[order], dtype=np.float64)
    return order[: max(1, int(np.searchsorted(total_s, fit_s, side="right")))].tolist()
