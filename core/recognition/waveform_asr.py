"""Speech recognition examples of a model that hears the waveform, and the masks over its frames and channels.

As in masked_speech.py the masks are keyed by the draws of a micro-batch, so that a batch is the same in any worker, on
any number of ranks and after any resume. Evaluation masks nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core.config.schema import section
from core.data.batch import PaddedBatch, Sample, SpeechDataset
from core.data.index import ManifestIndex
from core.data.reading import Reading
from core.data.sources import TrainingSource, open_sources
from core.distributed import Ranks
from core.losses.ctc import is_feasible
from core.recognition.asr import spelled
from core.recognition.asr_corpus import Cuts, kept_vocabulary, texts_of, transcripts
from core.samplers.plan import Draw, Plan
from core.seeding import generator
from core.speech.audio import zero_mean_unit_variance
from core.speech.masking import MaskConfig, span_mask
from core.text.vocabulary import CharacterVocabulary

SAMPLE_RATE_HZ = 16_000


@section
class WaveformAsrConfig:
    """The data of fine-tuning: manifests, and how their clips are heard and spelled.

    `symbols`: the characters to spell with, the space among them; null takes those of the training texts. `normalize`:
    each clip to mean 0 and variance 1, as in the pretraining. `time_mask`: frames that are replaced by the mask's
    embedding; `channel_mask`: channels of their features that are set to 0, `length` neighbours at a time.
    """

    train: str  # a manifest, or a blend of several (.yaml)
    valid: str
    test: str
    symbols: str | None = None
    normalize: bool = False
    time_mask: MaskConfig | None = field(default_factory=MaskConfig)
    channel_mask: MaskConfig | None = None

    def __post_init__(self) -> None:
        if self.symbols is not None:
            CharacterVocabulary(self.symbols)
            if " " not in self.symbols:
                raise ValueError(f"symbols={self.symbols!r} must have the space, which ends a word")


@dataclass(frozen=True, kw_only=True)
class MaskedWaveforms(PaddedBatch):
    """A batch of waveforms (B, S). `dropped_layers`: see core/data/layer_drop.py."""

    is_masked: Tensor  # (B, T)
    is_masked_channel: Tensor  # (B, D)
    dropped_layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MaskedUtterances(SpeechDataset):
    """A SpeechDataset of waveforms to train on, with masks for `output_lengths` frames of `num_channels` channels."""

    output_lengths: Callable[[Any], Any]
    num_channels: int
    time_mask: MaskConfig | None
    channel_mask: MaskConfig | None

    def __getitem__(self, draws: Sequence[Draw]) -> MaskedWaveforms:
        batch = super().__getitem__(draws)
        num_frames = np.maximum(1, self.output_lengths(batch.input_lengths.numpy()))
        num_channels = np.full(len(num_frames), self.num_channels)
        values = {one.name: getattr(batch, one.name) for one in fields(batch)}
        return MaskedWaveforms(
            **values,
            is_masked=self._mask("time_mask", self.time_mask, num_frames, draws),
            is_masked_channel=self._mask("channel_mask", self.channel_mask, num_channels, draws),
        )

    def _mask(self, name: str, config: MaskConfig | None, sizes: np.ndarray, draws: Sequence[Draw]) -> Tensor:
        """Return a mask (B, largest size) for sizes (B,): True where masked; without a config nowhere.

        There is always a mask, because ranks wait for the gradient of its embedding.
        """
        assert self.seed is not None
        is_masked = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.bool)
        if config is None or not draws:
            return is_masked
        rng = generator(self.seed, name, self.segment, *chain.from_iterable(draws))
        return is_masked.scatter_(1, torch.from_numpy(span_mask(sizes, config=config, rng=rng)), True)


@dataclass(frozen=True)
class WaveformCorpus:
    """The manifests of a run and the characters it spells with."""

    config: WaveformAsrConfig
    sources: list[TrainingSource]
    valid: list[TrainingSource]
    test: ManifestIndex
    vocabulary: CharacterVocabulary

    @classmethod
    def open(cls, config: WaveformAsrConfig, directory: Path, *, ranks: Ranks) -> "WaveformCorpus":
        """Open the manifests; the characters are kept in the run's `directory`. ValueError for a missing manifest."""
        sources = open_sources(Path(config.train))
        valid, test = open_sources(Path(config.valid)), ManifestIndex.open(Path(config.test))
        learned_from: list[Cuts] = [source.manifest for source in sources]
        vocabulary = kept_vocabulary(directory, learned_from, symbols=config.symbols, ranks=ranks)
        return cls(config, sources, valid, test, vocabulary)

    @property
    def texts(self) -> list[str]:
        """The texts of the training speech, to learn an n-gram from."""
        return texts_of(source.manifest for source in self.sources)

    @property
    def references(self) -> dict[str, str]:
        """The normalized transcript of each test utterance, whether or not the vocabulary has all its characters."""
        return dict(transcripts(self.test))

    def training_set(
        self, plan: Plan, *, output_lengths: Callable[[Any], Any], num_channels: int, seed: int
    ) -> MaskedUtterances:
        """Return the training examples; a model has `output_lengths` frames of `num_channels` channels for a clip."""
        examples = WaveformExamples(self.config, self.vocabulary, output_lengths)
        return MaskedUtterances(
            [source.manifest for source in self.sources],
            examples,
            examples.dummy(),
            SAMPLE_RATE_HZ,
            seed=seed,
            allowed_s=plan.crop_length,
            output_lengths=output_lengths,
            num_channels=num_channels,
            time_mask=self.config.time_mask,
            channel_mask=self.config.channel_mask,
        )

    def evaluation_set(self, split: Literal["valid", "test"], *, output_lengths: Callable[[Any], Any]) -> SpeechDataset:
        examples = WaveformExamples(self.config, self.vocabulary, output_lengths)
        indexes = [source.manifest for source in self.valid] if split == "valid" else [self.test]
        return SpeechDataset(indexes, examples, examples.dummy(), SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class WaveformExamples:
    """Makes examples that count as one target each: `examples(reading, rng)`.

    So the loss is a mean over utterances, which is how fairseq and torchaudio fine-tune; an utterance that CTC cannot
    align counts as none.
    """

    config: WaveformAsrConfig
    vocabulary: CharacterVocabulary
    output_lengths: Callable[[Any], Any]

    def __call__(self, reading: Reading, rng: np.random.Generator | None) -> Sample:
        ids = spelled(reading, self.vocabulary, is_training=rng is not None)
        samples, num_frames = reading.samples, self.output_lengths(len(reading.samples))
        if num_frames < 1:
            raise reading.bad("shorter than one frame of the model")
        if self.config.normalize:
            samples = zero_mean_unit_variance(samples, epsilon=1e-5)
        return Sample(
            sample_id=reading.sample_id,
            inputs=torch.from_numpy(samples),
            targets=torch.tensor(ids, dtype=torch.int64),
            num_targets=int(is_feasible(num_frames, ids)),
            audio_s=reading.duration_s,
        )

    def dummy(self) -> Sample:
        """Return what stands in for an empty micro-batch: a little silence without text."""
        return Sample("", torch.zeros(1600), torch.zeros(0, dtype=torch.int64), num_targets=0, audio_s=0.0)
