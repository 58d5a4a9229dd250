"""What train, score and transcribe share: the configuration, the corpus and the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from core.checkpoint.store import CheckpointConfig
from core.config.schema import section
from core.data.dataset import SpeechDataset
from core.data.index import ManifestIndex
from core.data.shar.shards import Shar
from core.data.shar.stream import SharStream, link_seed, open_shar
from core.data.sources import TrainingSource, open_sources
from core.data.stream import LoaderConfig, TrainStream
from core.distributed import Ranks
from core.job.run import Run, RunConfig
from core.job.stop import StopConfig
from core.models.ctc import CTCModel
from core.models.lmu.recognizer import LmuCtcConfig, build_lmu_ctc
from core.optim.optim import OptimConfig
from core.parallel.settings import ParallelConfig
from core.recognition.asr import AsrConfig, AsrExamples
from core.recognition.asr_corpus import Cuts, feature_stats, kept_vocabulary, transcripts
from core.recognition.recognize import DecodeConfig
from core.report.loggers import LoggerConfig
from core.rundir.files import FEATURE_STATS
from core.samplers.plan import Plan, PlanConfig
from core.seeding import seed_everything
from core.speech.features import FeatureStats
from core.text.vocabulary import CharacterVocabulary
from core.train.settings import TrainConfig

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"


@section
class Config:
    run: RunConfig
    data: AsrConfig
    plan: PlanConfig
    model: LmuCtcConfig
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
        if self.plan.over_budget == "crop":
            raise ValueError("plan.over_budget=crop would cut words off their audio; use skip, alone or error")
        if self.model.encoder.input_dim != self.data.features.num_mels:
            raise ValueError(
                f"model.encoder.input_dim={self.model.encoder.input_dim} must equal "
                f"data.features.num_mels={self.data.features.num_mels}"
            )


@dataclass(frozen=True)
class Corpus:
    """The data of a run, the characters of its training texts, and the statistics of its features."""

    config: Config
    train: list[TrainingSource] | Shar  # the latter with data.order=randomized
    valid: ManifestIndex
    test: ManifestIndex
    vocabulary: CharacterVocabulary
    stats: FeatureStats | None  # with data.features.normalize=corpus

    @classmethod
    def open(cls, config: Config, directory: Path, *, ranks: Ranks) -> "Corpus":
        """What is learned from the training data is made once, and kept in the run directory."""
        train = open_training_data(config.data, ranks=ranks)
        valid, test = (ManifestIndex.open(Path(path)) for path in (config.data.valid, config.data.test))
        sources, features = training_cuts(train), config.data.features
        vocabulary = kept_vocabulary(directory, sources, ranks=ranks)
        if ranks.is_first and features.normalize == "corpus" and not (directory / FEATURE_STATS).exists():
            feature_stats(sources, config=features).save(directory / FEATURE_STATS)
        ranks.barrier()
        return cls(config, train, valid, test, vocabulary, load_stats(config, directory))

    @cached_property
    def references(self) -> dict[str, str]:
        """The normalized transcript of each test utterance, whether or not the vocabulary has all its characters."""
        return dict(transcripts(self.test))

    def examples(self) -> AsrExamples:
        return AsrExamples(self.config.data, self.vocabulary, self.config.model.encoder.output_lengths, self.stats)

    def training_set(self, sources: list[TrainingSource], plan: Plan, *, seed: int) -> SpeechDataset:
        return self._dataset([source.manifest for source in sources], seed=seed, allowed_s=plan.allowed_s)

    def evaluation_set(self, split: Literal["valid", "test"]) -> SpeechDataset:
        return self._dataset([self.valid if split == "valid" else self.test], seed=None, allowed_s=None)

    def _dataset(self, indexes: list[ManifestIndex], *, seed: int | None, allowed_s: float | None) -> SpeechDataset:
        examples = self.examples()
        rate_hz = self.config.data.features.sample_rate_hz
        return SpeechDataset(indexes, examples, examples.dummy(), rate_hz, seed=seed, allowed_s=allowed_s)


def open_training_data(config: AsrConfig, *, ranks: Ranks) -> list[TrainingSource] | Shar:
    return open_shar(config.train, ranks) if config.order == "randomized" else open_sources(Path(config.train))


def training_cuts(train: list[TrainingSource] | Shar) -> Sequence[Cuts]:
    """Where the training texts are."""
    return [train] if isinstance(train, Shar) else [source.manifest for source in train]


def build_stream(config: Config, run: Run, corpus: Corpus) -> TrainStream | SharStream:
    """The batches in the order that `data.order` asks for."""
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
    """The same initial parameters for the same seed, on any number of ranks."""
    seed_everything(seed, "model")
    return build_lmu_ctc(config.model, vocab_size=vocab_size)


def load_stats(config: Config, directory: Path) -> FeatureStats | None:
    """Those that a run was trained with; None where its features are not normalized by them."""
    return FeatureStats.load(directory / FEATURE_STATS) if config.data.features.normalize == "corpus" else None
