"""A trained run of recipe lmu_gigaspeech as something that hears: audio in, CTC probabilities or text out.

transcriber = Transcriber.open(Path("runs/lmu_demo"), ranks=ranks, use_ngram=True)
print(transcriber.text(Path("talk.wav")))
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.distributed import Ranks
from core.models.ctc import CTCModel
from core.models.lmu.encoder import LmuCtcConfig, build_lmu_ctc
from core.parallel.settings import ParallelConfig, Precision
from core.recognition.asr import AsrConfig
from core.recognition.asr_corpus import load_feature_stats, open_training_data, texts_of, training_cuts
from core.recognition.decoding import BeamConfig, beam_search, greedy_search
from core.recognition.fusion import WeightedScorer, build_scorer
from core.recognition.recognize import DecodeConfig
from core.rundir.files import VOCABULARY
from core.speech.audio import AudioError, read_audio
from core.speech.features import FeatureConfig, LogMel, num_frames
from core.text.vocabulary import CharacterVocabulary
from core.train.trained import TrainedRun, load_trained

RECIPE = "lmu_gigaspeech"
CHUNK_S = 0.5  # of audio that a stream is fed at a time


@dataclass(frozen=True)
class Recognizer:
    """A trained CTC model, and what turns audio into its input."""

    model: CTCModel
    vocabulary: CharacterVocabulary
    features: FeatureConfig
    log_mel: LogMel
    device: torch.device

    @classmethod
    def open(cls, run: TrainedRun, *, ranks: Ranks, precision: Precision = "fp32") -> "Recognizer":
        """Open the newest checkpoint of a run. All ranks together; ValueError for a run of another recipe."""
        config, features = run.section(LmuCtcConfig, "model"), run.section(FeatureConfig, "data.features")
        vocabulary = CharacterVocabulary.load(run.directory / VOCABULARY)
        model = build_lmu_ctc(config, vocab_size=len(vocabulary))
        load_trained(model, run.directory, ranks=ranks, precision=precision)
        stats = load_feature_stats(run.directory, config=features)
        return cls(model, vocabulary, features, LogMel(features, stats=stats), ranks.device)

    def hear(self, samples: np.ndarray) -> Tensor | None:
        """Return the features (1, T, F) of samples (S,); None where they are shorter than one frame."""
        if num_frames(len(samples), config=self.features) < 1:
            return None
        features, _ = self.log_mel(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        return features.to(self.device)

    def log_probs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (1, T', V) and their length (1,) for features (1, T, F)."""
        return self.model.log_probs(features, torch.tensor([features.shape[1]], device=self.device))


@dataclass(frozen=True)
class Transcriber:
    """A recognizer and its decoding: greedy, or with `beam` a beam search."""

    recognizer: Recognizer
    beam: BeamConfig | None = None
    scorer: WeightedScorer | None = None  # of the beam search

    @classmethod
    def open(cls, directory: Path, *, ranks: Ranks, use_ngram: bool = False) -> "Transcriber":
        """Open the newest checkpoint of a run on this machine's device, whatever the run was trained on.

        `use_ngram`: a beam search as the run's configuration says, with an n-gram of its training texts. One rank.
        """
        run = TrainedRun(directory, RECIPE, str(directory))
        on_gpu = ranks.device.type == "cuda"
        precision = run.section(ParallelConfig, "parallel").precision if on_gpu else "fp32"
        recognizer = Recognizer.open(run, ranks=ranks, precision=precision)
        if not use_ngram:
            return cls(recognizer)
        data, decode = run.section(AsrConfig, "data"), run.section(DecodeConfig, "decode")
        texts = texts_of(training_cuts(open_training_data(data, ranks=ranks)))
        scorer = build_scorer(decode.ngram, vocabulary=recognizer.vocabulary, texts=texts)
        return cls(recognizer, decode.beam, scorer)

    @torch.inference_mode()
    def text(self, path: Path) -> str:
        """Return what is said in a file. Raises AudioError."""
        log_probs, lengths = self.recognizer.log_probs(self._features(path))
        if self.beam is None:
            return self.recognizer.vocabulary.decode(greedy_search(log_probs, lengths)[0].ids)
        best = beam_search(log_probs.cpu(), lengths.cpu(), config=self.beam, scorer=self.scorer)[0]
        return self.recognizer.vocabulary.decode(best[0].ids) if best else ""

    @torch.inference_mode()
    def partial_texts(self, path: Path) -> Iterator[str]:
        """Yield the greedy text so far whenever it has grown, at least once; the last is the whole. Raises AudioError.

        The model must be causal, and its features independent of the end of the utterance.
        """
        features, config = self._features(path), self.recognizer.features
        state, last, text = None, None, ""
        for chunk in features.split(max(1, round(CHUNK_S * config.sample_rate_hz / config.hop_samples)), dim=1):
            log_probs, state = self.recognizer.model.stream(chunk, state)
            if not log_probs.shape[1]:
                continue
            grown = self.recognizer.vocabulary.decode(_new_symbols(log_probs, last=last))
            last = log_probs[:, -1:]
            if grown:
                text += grown
                yield text
        if not text:
            yield text

    def _features(self, path: Path) -> Tensor:
        features = self.recognizer.hear(read_audio(path, sample_rate_hz=self.recognizer.features.sample_rate_hz))
        if features is None:
            raise AudioError(path, "is shorter than one feature frame")
        return features


def _new_symbols(log_probs: Tensor, *, last: Tensor | None) -> list[int]:
    """Return what the frames (1, t, V) add to the greedy labelling; `last` (1, 1, V) is the frame before them."""
    joint = log_probs if last is None else torch.cat([last, log_probs], dim=1)
    found = greedy_search(joint, torch.tensor([joint.shape[1]]))[0]
    first = 0 if last is None else 1
    return [symbol for symbol, frame in zip(found.ids, found.frames, strict=True) if frame >= first]
