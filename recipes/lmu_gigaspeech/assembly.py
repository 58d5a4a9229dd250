"""What train, score and transcribe share: the configuration, the corpus and the model."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from core.config.schema import section
from core.data.dataset import SpeechDataset
from core.data.index import ManifestIndex
from core.data.shar.shards import Shar
from core.data.shar.stream import SharStream, link_seed
from core.data.sources import TrainingSource, open_sources
from core.data.stream import TrainStream
from core.distributed import Ranks
from core.job.run import Run
from core.models.ctc import CTCModel
from core.models.lmu.recognizer import LmuCtcConfig, build_lmu_ctc
from core.recognition.asr import AsrConfig, AsrExamples
from core.recognition.asr_corpus import (
    feature_stats,
    kept_vocabulary,
    load_feature_stats,
    open_training_data,
    training_cuts,
    transcripts,
)  # fmt: skip
from core.recognition.recognize import DecodeConfig
from core.rundir.files import FEATURE_STATS
from core.samplers.plan import Plan, PlanConfig
from core.seeding import seed_everything
from core.speech.features import FeatureStats
from core.text.vocabulary import CharacterVocabulary
from core.train.config import TrainingConfig

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"


@section
class Config(TrainingConfig):
    EQUAL: ClassVar = (*TrainingConfig.EQUAL, ("data.features.num_mels", "model.encoder.input_dim"))

    data: AsrConfig
    plan: PlanConfig
    model: LmuCtcConfig
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.plan.over_budget == "crop":
            problems.append("plan.over_budget=crop would cut words off their audio; use skip, alone or error")
        return problems


@dataclass(frozen=True)
class Corpus:
    """The data of a run, the characters of its training texts, and the statistics of its features."""

    config: Config
    train: list[TrainingSource] | Shar  # the latter with data.order=randomized
    valid: list[TrainingSource]
    test: ManifestIndex
    vocabulary: CharacterVocabulary
    stats: FeatureStats | None  # with data.features.normalize=corpus

    @classmethod
    def open(cls, config: Config, directory: Path, *, ranks: Ranks) -> "Corpus":
        """What is learned from the training data is made once, and kept in the run directory."""
        train = open_training_data(config.data, ranks=ranks)
        valid, test = open_sources(Path(config.data.valid)), ManifestIndex.open(Path(config.data.test))
        sources, features = training_cuts(train), config.data.features
        vocabulary = kept_vocabulary(directory, sources, ranks=ranks)
        if ranks.is_first and features.normalize == "corpus" and not (directory / FEATURE_STATS).exists():
            feature_stats(sources, config=features).save(directory / FEATURE_STATS)
        ranks.barrier()
        return cls(config, train, valid, test, vocabulary, load_feature_stats(directory, config=features))

    @cached_property
    def references(self) -> dict[str, str]:
        """The normalized transcript of each test utterance, whether or not the vocabulary has all its characters."""
        return dict(transcripts(self.test))

    def examples(self) -> AsrExamples:
        return AsrExamples(self.config.data, self.vocabulary, self.config.model.encoder.output_lengths, self.stats)

    def training_set(self, sources: list[TrainingSource], plan: Plan, *, seed: int) -> SpeechDataset:
        return self._dataset([source.manifest for source in sources], seed=seed, allowed_s=plan.crop_length)

    def evaluation_set(self, split: Literal["valid", "test"]) -> SpeechDataset:
        indexes = [source.manifest for source in self.valid] if split == "valid" else [self.test]
        return self._dataset(indexes, seed=None, allowed_s=None)

    def _dataset(self, indexes: list[ManifestIndex], *, seed: int | None, allowed_s: float | None) -> SpeechDataset:
        examples = self.examples()
        rate_hz = self.config.data.features.sample_rate_hz
        return SpeechDataset(indexes, examples, examples.dummy(), rate_hz, seed=seed, allowed_s=allowed_s)


def build_stream(config: Config, run: Run, corpus: Corpus) -> TrainStream | SharStream:
    """Return the batches in the order that `data.order` asks for."""
    accept_data = config.run.accept_data
    if isinstance(corpus.train, Shar):
        examples = corpus.examples()
        return SharStream(
            corpus.train,
            examples,
            config.plan,
            dummy=examples.dummy(),
            sample_rate_hz=config.data.features.sample_rate_hz,
            config=config.loader,
            ranks=run.ranks,
            seed=link_seed(run.seed, run.link),
            accept_data=accept_data,
        )
    plan = Plan([source.planned for source in corpus.train], config.plan, seed=run.seed)
    dataset = corpus.training_set(corpus.train, plan, seed=run.seed)
    return TrainStream(plan, dataset, config=config.loader, ranks=run.ranks, accept_data=accept_data)


def build_model(config: Config, *, vocab_size: int, seed: int) -> CTCModel:
    """Build the model: the same initial parameters for the same seed, on any number of ranks."""
    seed_everything(seed, "model")
    return build_lmu_ctc(config.model, vocab_size=vocab_size)
