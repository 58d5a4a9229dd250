"""Examples of masked prediction: crops of audio with the cluster labels of their frames, and the frames to mask.

Everything random is keyed by the draws of the data plan: the crop by (seed, segment, source, epoch, row), the mask by
all draws of the batch. So a batch is the same in any worker, on any number of ranks and after any resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import torch.utils.data
from pydantic import Field
from torch import Tensor

from core.config.schema import section
from core.data.batch import TensorFields
from core.data.index import ManifestIndex
from core.data.reading import BadSample, read_cut
from core.samplers.budget import ROUNDING, Shapes
from core.samplers.plan import Draw
from core.seeding import generator
from core.speech.audio import zero_mean_unit_variance
from core.speech.channel import Channel
from core.speech.masking import MaskConfig, span_mask
from core.units.frame_labels import Crop, FrameGrid, at_grid, matched
from core.units.label_store import LabelStore

if TYPE_CHECKING:
    from lhotse import MonoCut


@section
class CropConfig:
    """The way from clips to rows of a batch.

    A clip longer than `max_s` gives a random part of it, in every epoch another. `fit`: shorter clips are padded to the
    longest of the batch (or to a shape of `plan.static_shapes`), or all cropped to the shortest (as torchaudio and
    fairseq do). `normalize`: each row to mean 0 and variance 1 (the larger models).
    """

    max_s: Annotated[float, Field(gt=0)] = 15.625  # 250,000 samples
    fit: Literal["pad", "crop"] = "pad"
    normalize: bool = False


@dataclass(frozen=True)
class MaskedBatch(TensorFields):
    """The input of one forward. `num_targets`: masked frames. `dropped_layers`: see core/data/layer_drop.py.

    Of the B rows the first R are clips, the others fill a static shape: silence of no frames, which changes nothing.
    An empty micro-batch is one silent row without masked frames, or a static shape of such rows.
    """

    audio: Tensor  # (B, S) float32
    num_samples: Tensor  # (B,) int64
    labels: Tensor  # (B, T) int64, 0 behind a row's frames
    num_frames: Tensor  # (B,) int64
    masked_frames: Tensor  # (R, K) int64, ascending
    sample_ids: list[str]
    num_targets: int
    length: float
    padded_length: float
    bad: list[BadSample] = field(default_factory=list)
    unit: str = "s"
    dropped_layers: tuple[int, ...] = ()

    @property
    def targets(self) -> Tensor:
        """The labels of the masked frames (R, K)."""
        return self.labels.gather(1, self.masked_frames)


@dataclass(frozen=True)
class _Row:
    sample_id: str
    samples: np.ndarray  # (S,) float32, exactly those that its frames see
    labels: np.ndarray  # (T,)


@dataclass(frozen=True)
class MaskedSpeech(torch.utils.data.Dataset[MaskedBatch]):
    """`dataset[draws]` is the batch of one micro-batch of the plan; for training and for evaluation.

    `labels` has a store for each index. `channel`: what each crop is heard through; None: as it was recorded.
    `shapes`: what the plan's micro-batches are padded to; None: to their longest row. An evaluation, whose draws are
    the same each time, gets the same crops and masks each time.
    """

    indexes: Sequence[ManifestIndex]
    labels: Sequence[LabelStore]
    grid: FrameGrid
    crop: CropConfig
    mask: MaskConfig
    seed: int
    channel: Channel | None = None
    shapes: Shapes | None = None
    segment: int = 0  # of the plan: the epochs of each begin at 0

    def __post_init__(self) -> None:
        """Raise ValueError for labels of another number of cuts, or at a rate that does not fall on the grid."""
        for index, store in zip(self.indexes, self.labels, strict=True):
            at_grid(np.zeros(0), labels_hz=store.card.rate_hz, grid=self.grid)
            if len(index) != len(store):
                raise ValueError(
                    f"{store.directory} has labels of {len(store)} cuts, {index.manifest} has {len(index)}; "
                    "prepare the labels of this manifest"
                )
        if self.shapes is not None and self.crop.fit == "crop":
            raise ValueError("data.crop.fit=crop pads nothing: set it to pad, or plan.static_shapes=false")

    def __getitem__(self, draws: Sequence[Draw]) -> MaskedBatch:
        cuts = [self.indexes[draw.source].read(draw.row) for draw in draws]
        lengths = [round(cut.duration * self.grid.sample_rate_hz) for cut in cuts]
        most = int(self.crop.max_s * self.grid.sample_rate_hz)
        if self.crop.fit == "crop":
            most = min([most, *(length for length in lengths if self.grid.num_frames(length) > self.mask.length)])
        rows: list[_Row] = []
        bad: list[BadSample] = []
        for draw, cut, length in zip(draws, cuts, lengths, strict=True):
            store = self.labels[draw.source]
            known = at_grid(store[draw.row], labels_hz=store.card.rate_hz, grid=self.grid)
            rng = generator(self.seed, "crop", self.segment, *draw)
            try:
                rows.append(self._row(cut, known, length=length, most=most, rng=rng))
            except BadSample as error:
                bad.append(error)
        rng = generator(self.seed, "mask", self.segment, *chain.from_iterable(draws))
        return self._collate(rows, bad, rng)

    def _row(self, cut: "MonoCut", labels: np.ndarray, *, length: int, most: int, rng: np.random.Generator) -> _Row:
        """Return a part of a cut of `length` samples with its frames' labels. BadSample where there is none."""
        if len(labels) == 0:
            raise BadSample(cut.id, "no labels: it could not be read when they were made", "")
        try:
            labels = matched(labels, num_frames=self.grid.num_frames(length))
        except ValueError as error:
            raise BadSample(cut.id, str(error), "") from None
        place = self.grid.crop(min(length, self.grid.num_samples(len(labels))), most_samples=most, rng=rng)
        samples = self._read(cut, place, length=length)
        num_frames = min(place.num_frames, self.grid.num_frames(len(samples)))
        if num_frames <= self.mask.length:
            raise BadSample(cut.id, f"{num_frames} frames, too few for spans of {self.mask.length}", "")
        samples = samples[: self.grid.num_samples(num_frames)]
        if self.channel is not None:
            samples = self.channel(samples, rng=rng)
        if self.crop.normalize:
            samples = zero_mean_unit_variance(samples, epsilon=1e-5)
        return _Row(cut.id, samples, labels[place.first_frame : place.first_frame + num_frames])

    def _read(self, cut: "MonoCut", place: Crop, *, length: int) -> np.ndarray:
        """Decode only the crop where the file has the grid's rate; else all of it, as resampling looks around."""
        rate_hz = self.grid.sample_rate_hz
        if cut.sampling_rate == rate_hz and place.num_samples < length:
            offset_s, duration_s = place.start_samples / rate_hz, place.num_samples / rate_hz
            part = cut.truncate(offset=offset_s, duration=duration_s, preserve_id=True)
            return read_cut(part, sample_rate_hz=rate_hz).samples
        samples = read_cut(cut, sample_rate_hz=rate_hz).samples
        return samples[place.start_samples : place.start_samples + place.num_samples]

    def _collate(self, rows: list[_Row], bad: list[BadSample], rng: np.random.Generator) -> MaskedBatch:
        of_clips = np.array([len(row.labels) for row in rows], np.int64)
        num_rows, longest = self._shape(of_clips)
        num_frames = np.zeros(num_rows, np.int64)
        num_frames[: len(rows)] = of_clips
        hop, window = self.grid.hop_samples, self.grid.window_samples
        num_samples = np.where(num_frames > 0, (num_frames - 1) * hop + window, 0)
        audio = np.zeros((num_rows, self.grid.num_samples(longest)), np.float32)
        labels = np.zeros((num_rows, longest), np.int64)
        for number, row in enumerate(rows):
            audio[number, : len(row.samples)] = row.samples
            labels[number, : len(row.labels)] = row.labels
        masked = span_mask(of_clips, config=self.mask, rng=rng) if rows else np.zeros((1, 0), np.int64)
        rate_hz = self.grid.sample_rate_hz
        return MaskedBatch(
            audio=torch.from_numpy(audio),
            num_samples=torch.from_numpy(num_samples),
            labels=torch.from_numpy(labels),
            num_frames=torch.from_numpy(num_frames),
            masked_frames=torch.from_numpy(masked),
            sample_ids=[row.sample_id for row in rows],
            num_targets=masked.size,
            length=sum(len(row.samples) for row in rows) / rate_hz,
            padded_length=audio.size / rate_hz if rows else 0.0,
            bad=bad,
        )

    def _shape(self, num_frames: np.ndarray) -> tuple[int, int]:
        """Return rows and frames of the batch of clips with so many frames (R,)."""
        if self.shapes is None:
            return max(1, len(num_frames)), int(num_frames.max(initial=self.mask.length))
        num_samples = self.shapes.upper * ROUNDING * self.grid.sample_rate_hz
        lengths = [self.grid.num_frames(int(most)) for most in num_samples]
        number = int(np.searchsorted(lengths, num_frames.max(initial=0)))
        num_rows = int(self.shapes.num_rows[number])
        assert len(num_frames) <= num_rows, "the plan deals no more cuts than fit in"
        return num_rows, lengths[number]
