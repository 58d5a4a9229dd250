"""Speech recognition examples: a reading becomes normalized log-mel features and character ids."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from core.config.schema import section
from core.data.batch import Sample
from core.data.reading import Reading
from core.losses.ctc import is_feasible
from core.speech.augment import Augment, AugmentConfig, SpecAugmentConfig, spec_augment
from core.speech.features import FeatureConfig, FeatureStats, LogMel, num_frames
from core.text.normalization import normalize_transcript
from core.text.vocabulary import CharacterVocabulary


@section
class AsrConfig:
    """The data of speech recognition: manifests, features, and the augmentation of training examples.

    `order`: `exact` is the same sequence of batches on any number of ranks and over any resume; `randomized` streams
    a Shar directory, in a new order for each link.
    """

    train: str  # a manifest, or a blend of several (.yaml); with order=randomized a Shar directory
    valid: str  # a manifest or a blend, of which every clip is taken once
    test: str
    order: Literal["exact", "randomized"] = "exact"
    features: FeatureConfig = field(default_factory=FeatureConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    spec_augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)

    def __post_init__(self) -> None:
        train = Path(self.train)
        if self.order == "randomized" and train.suffix in (".jsonl", ".yaml", ".yml"):
            raise ValueError(
                f"train={self.train} is a manifest or a blend, but order=randomized reads a Shar directory; make one: "
                "python -m manifests.shar MANIFEST OUTPUT_DIR"
            )
        if self.order == "exact" and train.is_dir():
            raise ValueError(
                f"train={self.train} is a directory, but order=exact reads a manifest or a blend; if it is a Shar "
                "directory, set order=randomized"
            )


@dataclass(frozen=True)
class AsrExamples:
    """Makes examples: `examples(reading, rng)` is a Sample; without rng (evaluation) nothing is augmented.

    `output_lengths`: frames of the model's output for so many feature frames; says which utterances CTC can align.
    """

    config: AsrConfig
    vocabulary: CharacterVocabulary
    output_lengths: Callable[[Any], Any]
    stats: FeatureStats | None = None  # with features.normalize=corpus

    def __call__(self, reading: Reading, rng: np.random.Generator | None) -> Sample:
        ids = spelled(reading, self.vocabulary, is_training=rng is not None)
        samples, rate_hz = reading.samples, reading.sample_rate_hz
        if rng is not None:
            samples = self._augment(samples, rng=rng)
        if num_frames(len(samples), config=self.config.features) < 1:
            raise reading.bad("shorter than one feature frame")
        audio = torch.from_numpy(samples)[None]  # (1, S)
        features = self._log_mel(audio, torch.tensor([len(samples)]))[0][0]  # (T, F)
        if rng is not None and self.config.spec_augment is not None:
            features = spec_augment(features, config=self.config.spec_augment, rng=rng)
        can_align = is_feasible(self.output_lengths(len(features)), ids)
        return Sample(
            sample_id=reading.sample_id,
            inputs=features,
            targets=torch.tensor(ids, dtype=torch.int64),
            num_targets=len(ids) if can_align else 0,
            audio_s=len(samples) / rate_hz,
        )

    @cached_property
    def _augment(self) -> Augment:
        return Augment(self.config.augment, sample_rate_hz=self.config.features.sample_rate_hz)

    @cached_property
    def _log_mel(self) -> LogMel:
        return LogMel(self.config.features, stats=self.stats)

    def dummy(self) -> Sample:
        """Return what stands in for an empty micro-batch: a few silent frames without text."""
        features = torch.zeros(16, self.config.features.num_mels)
        return Sample("", features, torch.zeros(0, dtype=torch.int64), num_targets=0, audio_s=0.0)


def spelled(reading: Reading, vocabulary: CharacterVocabulary, *, is_training: bool) -> list[int]:
    """Return the ids of the utterance's characters. BadSample without any and, in training, for unknown ones.

    In evaluation those are left out: they are errors that the model could not but make.
    """
    text = transcript(reading)
    ids, unknown = vocabulary.encode_known(text)
    if unknown and is_training:
        raise reading.bad(f"{unknown} characters outside the vocabulary in {text!r}")
    return ids


def transcript(reading: Reading) -> str:
    """Return the normalized text; BadSample for an utterance that holds no speech."""
    text = normalize_transcript(reading.text(), language=reading.cut.supervisions[0].language or "en")
    if not text:
        raise reading.bad("no words after normalization")
    return text
