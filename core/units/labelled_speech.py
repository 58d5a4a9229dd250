"""The corpus of masked prediction: manifests of speech, and the label stores that `prepare` made of them.

corpus = LabelledSpeech.open(config.data)
stores = corpus.stores(num_clusters=100, features="mfcc:torchaudio", layer=None)      # refused if they are others
dataset = corpus.training_set(stores, grid=grid, seed=seed)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.config.schema import section
from core.data.index import ManifestIndex
from core.data.sources import TrainingSource, open_sources
from core.rundir.environment import runs_root
from core.samplers.budget import Shapes
from core.speech.channel import Channel, ChannelConfig
from core.speech.masking import MaskConfig
from core.units.frame_labels import FrameGrid
from core.units.label_store import LabelStore, manifest_fingerprint
from core.units.labelling import LABELS
from core.units.masked_speech import CropConfig, MaskedSpeech


@section
class LabelledSpeechConfig:
    """`train`, `valid`: a manifest or a blend. `labels`: the run that prepared them, by its name under
    `runs/` or its directory; any folder with label stores `labels/MANIFEST` will do. `channel`: what each training crop
    is heard through, with the labels of the clean one; null: nothing.
    """

    train: str
    valid: str
    labels: str
    crop: CropConfig = field(default_factory=CropConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    channel: ChannelConfig | None = None


class LabelStores(NamedTuple):
    """The labels of the manifests to train on, and of those to validate on."""

    train: list[LabelStore]
    valid: list[LabelStore]


@dataclass(frozen=True)
class LabelledSpeech:
    """The manifests of a run."""

    config: LabelledSpeechConfig
    sources: list[TrainingSource]
    valid: list[TrainingSource]

    @classmethod
    def open(cls, config: LabelledSpeechConfig) -> "LabelledSpeech":
        """Open the manifests; ValueError for one that is missing, or that is trained and validated on."""
        sources, valid = open_sources(Path(config.train)), open_sources(Path(config.valid))
        for name in {source.name for source in sources} & {source.name for source in valid}:
            raise ValueError(f"data.valid={config.valid}: a training source has the name {name}, too")
        return cls(config, sources, valid)

    @property
    def indexes(self) -> Mapping[str, ManifestIndex]:
        """All manifests by name; those to train on first."""
        return {source.name: source.manifest for source in (*self.sources, *self.valid)}

    @property
    def training_indexes(self) -> list[ManifestIndex]:
        return [source.manifest for source in self.sources]

    def stores(self, **expected: Any) -> LabelStores:
        """Open the labels of all manifests. ValueError where their cards contradict `expected` or the manifests."""
        folder = runs_root() / self.config.labels / LABELS
        opened = [
            LabelStore.open(folder / name, manifest=manifest_fingerprint(index), **expected)
            for name, index in self.indexes.items()
        ]
        return LabelStores(opened[: len(self.sources)], opened[len(self.sources) :])

    def training_set(
        self, stores: LabelStores, *, grid: FrameGrid, seed: int, shapes: Shapes | None = None
    ) -> MaskedSpeech:
        """Return the training data. `shapes`: those of the plan, `plan.shapes`."""
        crop, mask, channel = self.config.crop, self.config.mask, self.config.channel
        through = None if channel is None else Channel(channel, grid.sample_rate_hz)
        return MaskedSpeech(
            self.training_indexes, stores.train, grid, crop, mask, seed=seed, channel=through, shapes=shapes
        )

    def validation_set(
        self, stores: LabelStores, *, grid: FrameGrid, seed: int, shapes: Shapes | None = None
    ) -> MaskedSpeech:
        """Return the validation data, with the same crops and masks each time."""
        crop, mask = self.config.crop, self.config.mask
        indexes = [source.manifest for source in self.valid]
        return MaskedSpeech(indexes, stores.valid, grid, crop, mask, seed=seed, shapes=shapes)


def most_frequent_label(stores: LabelStores) -> int:
    """Return the training label that a model which hears nothing would guess."""
    return int(np.sum([store.counts() for store in stores.train], axis=0).argmax())
