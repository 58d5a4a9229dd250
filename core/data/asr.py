"""Speech recognition examples: a reading becomes normalized log-mel features and character ids."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.config import section
from core.data.augment import Augment, AugmentConfig, SpecAugmentConfig, spec_augment
from core.data.batch import Sample
from core.data.index import ManifestIndex
from core.data.reading import BadSample, Reading, read_cut
from core.features import FeatureConfig, FeatureStats, LogMel, num_frames
from core.losses.ctc import is_feasible
from core.text import CharacterVocabulary, normalize_transcript

_STATS_UTTERANCES = 500  # some 20 minutes to an hour of speech: the means no longer move


@section
class AsrConfig:
    """What the model hears and reads: manifests, features, and the augmentation of training examples."""

    train: str  # a manifest, or a blend of several (.yaml)
    valid: str
    test: str
    features: FeatureConfig = field(default_factory=FeatureConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    spec_augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)


@dataclass(frozen=True)
class AsrExamples:
    """`examples(reading, rng)` is a Sample; without rng (evaluation) nothing is augmented.

    `output_lengths`: frames of the model's output for so many feature frames; says which utterances CTC can align.
    """

    config: AsrConfig
    vocabulary: CharacterVocabulary
    output_lengths: Callable[[Any], Any]
    stats: FeatureStats | None = None  # with features.normalize=corpus

    def __call__(self, reading: Reading, rng: np.random.Generator | None) -> Sample:
        text = transcript(reading)
        ids, unknown = self.vocabulary.encode_known(text)
        if unknown and rng is not None:
            raise reading.bad(f"{unknown} characters outside the vocabulary in {text!r}")
        samples, rate_hz = reading.samples, reading.sample_rate_hz
        if rng is not None:
            samples = Augment(self.config.augment, sample_rate_hz=rate_hz)(samples, rng=rng)
        if num_frames(len(samples), config=self.config.features) < 1:
            raise reading.bad("shorter than one feature frame")
        audio = torch.from_numpy(samples)[None]  # (1, S)
        features = LogMel(self.config.features, stats=self.stats)(audio, torch.tensor([len(samples)]))[0][0]  # (T, F)
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

    def dummy(self) -> Sample:
        """Stands in for an empty micro-batch: a few silent frames without text."""
        features = torch.zeros(16, self.config.features.num_mels)
        return Sample("", features, torch.zeros(0, dtype=torch.int64), num_targets=0, audio_s=0.0)


def feature_stats(indexes: Sequence[ManifestIndex], *, config: FeatureConfig) -> FeatureStats:
    """Of some `_STATS_UTTERANCES` utterances evenly spread over manifests, without those that cannot be read."""
    log_mel = LogMel(replace(config, normalize="none"))
    places = [(index, row) for index in indexes for row in _spread(len(index), most=_STATS_UTTERANCES // len(indexes))]

    def features() -> Iterator[Tensor]:
        for index, row in places:
            try:
                samples = read_cut(index.read(row), sample_rate_hz=config.sample_rate_hz).samples
            except BadSample:
                continue  # training will come across it, and list it
            yield log_mel(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))[0][0]

    try:
        return FeatureStats.of(features())
    except ValueError as error:
        names = ", ".join(str(index.manifest) for index in indexes)
        raise ValueError(f"data.features.normalize=corpus: {error}; every file of {names} is bad") from None


def _spread(num: int, *, most: int) -> list[int]:
    return [int(row) for row in np.linspace(0, num - 1, min(num, max(1, most)))]


def transcript(reading: Reading) -> str:
    """The normalized text; BadSample for an utterance that holds no speech."""
    text = normalize_transcript(reading.text(), language=reading.cut.supervisions[0].language or "en")
    if not text:
        raise reading.bad("no words after normalization")
    return text


def texts_of(indexes: Iterable[ManifestIndex]) -> list[str]:
    """The normalized texts of manifests, to learn characters and n-grams from."""
    return [text for index in indexes for _, text in transcripts(index)]


def transcripts(index: ManifestIndex) -> Iterator[tuple[str, str]]:
    """(sample id, normalized text) of the cuts of a manifest, without its garbage utterances."""
    for row in range(len(index)):
        cut = index.read(row)
        parts = [one.text or "" for one in sorted(cut.supervisions, key=lambda one: one.start)]
        language = (cut.supervisions[0].language if cut.supervisions else None) or "en"
        text = normalize_transcript(" ".join(parts), language=language)
        if text:
            yield str(cut.id), text
