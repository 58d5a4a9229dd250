"""The corpus of contrastive training: manifests of clips with their texts, and how they become pairs.

corpus = PairedCorpus.open(config.data, run.directory, ranks=run.ranks)
plan = corpus.training_plan(config.plan, seed=run.seed)
stream = TrainStream(plan, corpus.training_set(seed=run.seed), config=config.loader, ranks=run.ranks)
batches = evaluation_batches(
    corpus.evaluation_plan("valid", config.plan, seed=run.seed), corpus.evaluation_set("valid", seed=run.seed), ...
)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from core.config.schema import section
from core.data.index import ManifestIndex
from core.data.pcm_cache import PcmCache
from core.data.sources import TrainingSource, open_sources
from core.distributed import Ranks
from core.recognition.asr_corpus import kept_vocabulary
from core.samplers.blend import Draws
from core.samplers.plan import EvaluationPlan, Plan, PlanConfig, Source
from core.text.tokenization import Tokenizer, TokenizerConfig, open_tokenizer
from core.text.words import words_of
from recipes.csa_stage1.paired_speech import PairConfig, PairedSpeech, language_of
from recipes.csa_stage1.word_crops import CropSampler, WordCropConfig

Split = Literal["valid", "test"]

_LENGTH_CLIPS = 5_000


@section
class PairedCorpusConfig:
    """`train`, `valid`: a manifest or a blend; `test`: a manifest. `evaluate`: whole clips, or one crop of each, always
    the same. `pcm_cache`: read samples from the caches that `prepare` put beside the manifests."""

    train: str
    valid: str
    test: str
    tokenizer: TokenizerConfig
    crop: WordCropConfig | None = field(default_factory=WordCropConfig)  # null: whole clips
    evaluate: Literal["whole", "crop"] = "whole"
    pairs: PairConfig = field(default_factory=PairConfig)
    pcm_cache: bool = False

    def __post_init__(self) -> None:
        if self.tokenizer.kind == "characters" and self.pairs.text == "written":
            raise ValueError("pairs.text=written must be spoken with tokenizer.kind=characters")
        if self.evaluate == "crop" and self.crop is None:
            raise ValueError("evaluate=crop needs crop: with crop=null clips are whole")


@dataclass(frozen=True)
class PairedCorpus:
    """The manifests of a run."""

    config: PairedCorpusConfig
    sources: list[TrainingSource]
    valid: list[TrainingSource]
    test: ManifestIndex
    tokenizer: Tokenizer

    @classmethod
    def open(cls, config: PairedCorpusConfig, directory: Path, *, ranks: Ranks) -> "PairedCorpus":
        """Open the corpus of a run; `directory` keeps the characters that are learned with such a tokenizer.

        All ranks together. ValueError for what is missing.
        """
        sources = open_sources(Path(config.train))
        valid, test = open_sources(Path(config.valid)), ManifestIndex.open(Path(config.test))
        vocabulary = None
        if config.tokenizer.kind == "characters":
            vocabulary = kept_vocabulary(directory, [source.manifest for source in sources], ranks=ranks)
        return cls(config, sources, valid, test, open_tokenizer(config.tokenizer, vocabulary=vocabulary))

    def training_plan(self, config: PlanConfig, *, seed: int) -> Plan:
        crops = self._crops(seed)
        lengths = None if crops is None else crops.lengths_s
        return Plan([source.planned for source in self.sources], config, seed=seed, lengths=lengths)

    def training_set(self, *, seed: int) -> PairedSpeech:
        return self._dataset([source.manifest for source in self.sources], self._crops(seed))

    def evaluation_plan(self, split: Split, config: PlanConfig, *, seed: int) -> EvaluationPlan:
        """Plan every clip of a split once; `config`: its limits on a batch."""
        crops, sources = self._evaluation_crops(seed), []
        for number, index in enumerate(self._held_out(split)):
            durations_s = index.durations_s
            if crops is not None:
                source, epoch = np.full(len(index), number), np.zeros(len(index), np.int64)
                durations_s = crops.lengths_s(
                    Draws(source, epoch, np.arange(len(index)), durations_s, False), segment=0
                )
            sources.append(Source(split, durations_s))
        return EvaluationPlan(sources, config)

    def evaluation_set(self, split: Split, *, seed: int) -> PairedSpeech:
        return self._dataset(self._held_out(split), self._evaluation_crops(seed))

    def training_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return duration (N,) in seconds and number of characters (N,) of some whole clips, evenly spread over the
        sources: what a baseline that only knows lengths is fitted to.
        """
        durations_s, num_chars = [], []
        most = max(1, _LENGTH_CLIPS // len(self.sources))
        for index in (source.manifest for source in self.sources):
            for row in np.linspace(0, len(index) - 1, min(len(index), most)).astype(int):
                record = index.record(int(row))
                text = self.config.pairs.text_of(" ".join(words_of(record).texts), language=language_of(record))
                if text:
                    durations_s.append(record["duration"])
                    num_chars.append(len(text))
        return np.array(durations_s), np.array(num_chars)

    def _held_out(self, split: Split) -> list[ManifestIndex]:
        return [source.manifest for source in self.valid] if split == "valid" else [self.test]

    def _crops(self, seed: int) -> CropSampler | None:
        return None if self.config.crop is None else CropSampler(self.config.crop, seed)

    def _evaluation_crops(self, seed: int) -> CropSampler | None:
        return self._crops(seed) if self.config.evaluate == "crop" else None

    def _dataset(self, indexes: Sequence[ManifestIndex], crops: CropSampler | None) -> PairedSpeech:
        caches: Iterable[PcmCache | None] = (
            PcmCache.open(index) if self.config.pcm_cache else None for index in indexes
        )
        tokenizer, config = self.config.tokenizer, self.config
        return PairedSpeech(indexes, list(caches), config.pairs, crops, self.tokenizer, tokenizer.max_tokens)
