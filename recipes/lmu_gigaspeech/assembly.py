"""What train, score and transcribe share: the configuration, the corpus and the model."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from core.config import section
from core.data.asr import AsrConfig, AsrExamples, transcripts
from core.data.dataset import SpeechDataset
from core.data.index import ManifestIndex
from core.data.stream import LoaderConfig
from core.decoding import BeamConfig
from core.distributed import Ranks
from core.fusion import FusionConfig
from core.models.attention_lmu import AttentionLMUEncoder, AttentionLMUEncoderConfig
from core.models.ctc import CTCHeadConfig, CTCModel
from core.models.lmu_encoder import LMUEncoder, LMUEncoderConfig
from core.optim import OptimConfig
from core.parallel.engine import ParallelConfig
from core.samplers.plan import Plan, PlanConfig
from core.seeding import seed_everything
from core.text import CharacterVocabulary
from core.train.checkpoint import CheckpointConfig
from core.train.loggers import LoggerConfig
from core.train.run import RunConfig
from core.train.settings import TrainConfig
from core.train.stop import StopConfig

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"
VOCABULARY = "vocabulary.txt"


@section
class ModelConfig:
    """The encoder and the CTC layer on top."""

    encoder: LMUEncoderConfig | AttentionLMUEncoderConfig
    head: CTCHeadConfig = field(default_factory=CTCHeadConfig)


@section
class DecodeConfig:
    """How held-out speech is decoded: greedily, and by a beam search with an n-gram of the training texts."""

    beam: BeamConfig = field(default_factory=BeamConfig)
    ngram: FusionConfig = field(default_factory=FusionConfig)


@section
class Config:
    run: RunConfig
    data: AsrConfig
    plan: PlanConfig
    model: ModelConfig
    train: TrainConfig
    optim: OptimConfig
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    loggers: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        total = getattr(self.optim.schedule, "total_steps", self.train.max_steps)
        if total != self.train.max_steps:
            raise ValueError(f"optim.schedule.total_steps={total} must equal train.max_steps={self.train.max_steps}")
        if self.model.encoder.input_dim != self.data.features.num_mels:
            raise ValueError(
                f"model.encoder.input_dim={self.model.encoder.input_dim} must equal "
                f"data.features.num_mels={self.data.features.num_mels}"
            )


@dataclass(frozen=True)
class Corpus:
    """The manifests of a run and the characters of its training texts."""

    config: Config
    train: ManifestIndex
    valid: ManifestIndex
    test: ManifestIndex
    vocabulary: CharacterVocabulary

    @classmethod
    def open(cls, config: Config, directory: Path, *, ranks: Ranks) -> "Corpus":
        """The vocabulary is made of the training texts once, and kept in the run directory."""
        train, valid, test = (ManifestIndex.open(Path(path)) for path in _manifests(config))
        path = directory / VOCABULARY
        if ranks.is_first and not path.exists():
            temporary = path.with_suffix(".tmp")
            CharacterVocabulary.of_texts([text for _, text in transcripts(train)]).save(temporary)
            os.replace(temporary, path)
        ranks.barrier()
        return cls(config, train, valid, test, CharacterVocabulary.load(path))

    @cached_property
    def references(self) -> dict[str, str]:
        """The normalized transcript of each test utterance, whether or not the vocabulary has all its characters."""
        return dict(transcripts(self.test))

    def examples(self) -> AsrExamples:
        return AsrExamples(self.config.data, self.vocabulary, self.config.model.encoder.output_lengths)

    def training_set(self, plan: Plan, *, seed: int) -> SpeechDataset:
        return self._dataset(self.train, seed=seed, allowed_s=plan.allowed_s)

    def evaluation_set(self, split: Literal["valid", "test"]) -> SpeechDataset:
        return self._dataset(self.valid if split == "valid" else self.test, seed=None, allowed_s=None)

    def _dataset(self, index: ManifestIndex, *, seed: int | None, allowed_s: float | None) -> SpeechDataset:
        examples = self.examples()
        rate_hz = self.config.data.features.sample_rate_hz
        return SpeechDataset([index], examples, examples.dummy(), rate_hz, seed=seed, allowed_s=allowed_s)


def build_model(config: Config, *, vocab_size: int, seed: int) -> CTCModel:
    """The same initial parameters for the same seed, on any number of ranks."""
    seed_everything(seed, "model")
    encoder = config.model.encoder
    if isinstance(encoder, LMUEncoderConfig):
        return CTCModel(LMUEncoder(encoder), vocab_size=vocab_size, config=config.model.head)
    return CTCModel(AttentionLMUEncoder(encoder), vocab_size=vocab_size, config=config.model.head)


def _manifests(config: Config) -> tuple[str, str, str]:
    return config.data.train, config.data.valid, config.data.test
