"""What is learned from the training data of speech recognition before training: its texts, and feature statistics."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from core.data.reading import BadSample, read_cut
from core.data.shar.shards import Shar
from core.data.shar.stream import open_shar
from core.data.sources import TrainingSource, open_sources
from core.distributed import Ranks
from core.recognition.asr import AsrConfig
from core.rundir.files import FEATURE_STATS, VOCABULARY
from core.speech.features import FeatureConfig, FeatureStats, LogMel
from core.text.normalization import normalize_transcript
from core.text.vocabulary import CharacterVocabulary

if TYPE_CHECKING:  # lhotse takes long to import
    from lhotse import MonoCut

_STATS_UTTERANCES = 500  # some 20 minutes to an hour of speech: the means no longer move


class Cuts(Protocol):
    """Utterances to learn vocabulary and statistics from: a manifest or a Shar directory."""

    def cuts(self) -> Iterator["MonoCut"]: ...
    def spread(self, most: int) -> Iterator["MonoCut"]: ...


def open_training_data(config: AsrConfig, *, ranks: Ranks) -> list[TrainingSource] | Shar:
    """Return the manifests of `config.train`, or with order=randomized its Shar directory."""
    return open_shar(config.train, ranks) if config.order == "randomized" else open_sources(Path(config.train))


def training_cuts(train: list[TrainingSource] | Shar) -> Sequence[Cuts]:
    return [train] if isinstance(train, Shar) else [source.manifest for source in train]


def kept_vocabulary(
    directory: Path, sources: Sequence[Cuts], *, symbols: str | None = None, ranks: Ranks
) -> CharacterVocabulary:
    """Return the characters of the run in `directory`: `symbols`, or else those of its training texts.

    They are made once and kept there.
    """
    if ranks.is_first and not (directory / VOCABULARY).exists():
        made = CharacterVocabulary.of_texts(texts_of(sources)) if symbols is None else CharacterVocabulary(symbols)
        made.save(directory / VOCABULARY)
    ranks.barrier()
    return CharacterVocabulary.load(directory / VOCABULARY)


def feature_stats(sources: Sequence[Cuts], *, config: FeatureConfig) -> FeatureStats:
    """Return statistics of some `_STATS_UTTERANCES` utterances, evenly spread over the sources.

    Those that cannot be read are left out. ValueError where that is all of them.
    """
    log_mel = LogMel(replace(config, normalize="none"))
    most = max(1, _STATS_UTTERANCES // len(sources))

    def features() -> Iterator[Tensor]:
        for cut in (cut for source in sources for cut in source.spread(most)):
            try:
                samples = read_cut(cut, sample_rate_hz=config.sample_rate_hz).samples
            except BadSample:
                continue  # training will come across it, and list it
            yield log_mel(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))[0][0]

    try:
        return FeatureStats.of(features())
    except ValueError as error:
        names = ", ".join(map(str, sources))
        raise ValueError(f"data.features.normalize=corpus: {error}; every file of {names} is bad") from None


def load_feature_stats(directory: Path, *, config: FeatureConfig) -> FeatureStats | None:
    """Return those that the run in `directory` was trained with; None where its features are not normalized by them."""
    return FeatureStats.load(directory / FEATURE_STATS) if config.normalize == "corpus" else None


def texts_of(sources: Iterable[Cuts]) -> list[str]:
    """Return the normalized texts of all sources, to learn characters and n-grams from."""
    return [text for source in sources for _, text in transcripts(source)]


def transcripts(source: Cuts) -> Iterator[tuple[str, str]]:
    """Yield (sample id, normalized text) of the cuts of a source, without its garbage utterances."""
    for cut in source.cuts():
        parts = [one.text or "" for one in sorted(cut.supervisions, key=lambda one: one.start)]
        language = (cut.supervisions[0].language if cut.supervisions else None) or "en"
        text = normalize_transcript(" ".join(parts), language=language)
        if text:
            yield str(cut.id), text
