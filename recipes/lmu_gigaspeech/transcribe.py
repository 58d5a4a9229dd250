"""Text from audio files, by a trained run: one line `path<TAB>text` a file.

    python -m recipes.lmu_gigaspeech.transcribe --run runs/lmu_demo talk.wav recordings/ --ngram
    python -m recipes.lmu_gigaspeech.transcribe --run runs/lmu_causal talk.wav --stream

Folders are searched for audio files. A file that cannot be read is reported and skipped; the exit code is then 89.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.config.load import load
from core.distributed import Ranks, joined
from core.job.errors import said_plainly
from core.models.ctc import CTCModel
from core.recognition.asr_corpus import texts_of
from core.recognition.decoding import beam_search, greedy_search
from core.recognition.fusion import WeightedScorer, build_scorer
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CONFIG, VOCABULARY
from core.speech.audio import AudioError, read_audio
from core.speech.features import FeatureStats, LogMel, num_frames
from core.text.vocabulary import CharacterVocabulary
from core.train.trained import load_trained
from recipes.lmu_gigaspeech.assembly import Config, build_model, load_stats, open_training_data, training_cuts

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})
CHUNK_S = 0.5  # of audio that a stream is fed at a time


@dataclass(frozen=True)
class Transcriber:
    """A trained model and what turns its output into text."""

    config: Config
    model: CTCModel
    vocabulary: CharacterVocabulary
    stats: FeatureStats | None  # of the training speech, with data.features.normalize=corpus
    device: torch.device
    use_ngram: bool = False
    scorer: WeightedScorer | None = None  # of the beam search, with use_ngram

    @classmethod
    def open(cls, run: Path, *, ranks: Ranks, use_ngram: bool = False) -> "Transcriber":
        """The newest checkpoint of a run, on one rank: this machine's device, whatever the run was trained on."""
        config = load(Config, run / CONFIG)
        precision = config.parallel.precision if ranks.device.type == "cuda" else "fp32"
        vocabulary = CharacterVocabulary.load(run / VOCABULARY)
        scorer = _scorer(config, vocabulary, ranks=ranks) if use_ngram else None
        model = build_model(config, vocab_size=len(vocabulary), seed=config.run.seed)
        load_trained(model, run, ranks=ranks, precision=precision)
        return cls(config, model, vocabulary, load_stats(config, run), ranks.device, use_ngram, scorer)

    @torch.inference_mode()
    def text(self, path: Path) -> str:
        """Raises AudioError."""
        features = self._features(path)
        log_probs, lengths = self.model.log_probs(features, torch.tensor([features.shape[1]], device=self.device))
        if not self.use_ngram:
            return self.vocabulary.decode(greedy_search(log_probs, lengths)[0].ids)
        best = beam_search(log_probs.cpu(), lengths.cpu(), config=self.config.decode.beam, scorer=self.scorer)[0]
        return self.vocabulary.decode(best[0].ids) if best else ""

    @torch.inference_mode()
    def partial_texts(self, path: Path) -> Iterator[str]:
        """The greedy text so far whenever it has grown, at least once; the last is the whole. Raises AudioError."""
        features = self._features(path)
        rate_hz, hop = self.config.data.features.sample_rate_hz, self.config.data.features.hop_samples
        state, last, text = None, None, ""
        for chunk in features.split(max(1, round(CHUNK_S * rate_hz / hop)), dim=1):
            log_probs, state = self.model.stream(chunk, state)
            if not log_probs.shape[1]:
                continue
            grown = self.vocabulary.decode(_new_symbols(log_probs, last=last))
            last = log_probs[:, -1:]
            if grown:
                text += grown
                yield text
        if not text:
            yield text

    def _features(self, path: Path) -> Tensor:
        """(1, T, F)"""
        config = self.config.data.features
        samples = read_audio(path, sample_rate_hz=config.sample_rate_hz)
        if num_frames(len(samples), config=config) < 1:
            raise AudioError(path, "is shorter than one feature frame")
        features, _ = LogMel(config, stats=self.stats)(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        return features.to(self.device)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("transcribe", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument("--run", required=True, type=Path, help="directory of a trained run")
    decoding = parser.add_mutually_exclusive_group()
    decoding.add_argument("--ngram", action="store_true", help="beam search with an n-gram of the training texts")
    decoding.add_argument("--stream", action="store_true", help="feed 0.5 s at a time, print the text as it grows")
    arguments = parser.parse_args(argv)
    for path in (arguments.run / CONFIG, arguments.run / VOCABULARY):
        if not path.exists():
            parser.error(f"--run {arguments.run}: there is no {path}; name the directory of a trained run")
    config = load(Config, arguments.run / CONFIG)
    if arguments.stream:
        check_can_stream(config)
    device = "cpu" if config.run.device == "cpu" else "auto"
    with joined(device=device) as ranks:
        with said_plainly():
            transcriber = Transcriber.open(arguments.run, ranks=ranks, use_ngram=arguments.ngram)
        num_bad = 0
        for path in arguments.paths:
            num_bad += _transcribe(transcriber, path, stream=arguments.stream)
    return ExitCode.DATA if num_bad else ExitCode.DONE


def check_can_stream(config: Config) -> None:
    """ValueError unless text can be given before the end of the audio is known."""
    if not config.model.encoder.causal:
        raise ValueError("--stream needs model.encoder.causal=true, got false: the model looks into the future")
    if config.data.features.normalize == "utterance":
        raise ValueError(
            "--stream needs data.features.normalize=corpus or none, got utterance: "
            "the features of the beginning depend on the whole utterance; train with corpus"
        )


def _transcribe(transcriber: Transcriber, path: Path, *, stream: bool) -> int:
    """Print the text of a file, or of all audio files below a folder; how many could not be read."""
    files = [path]
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.suffix.lower() in AUDIO_SUFFIXES and one.is_file())
        if not files:
            print(f"{path}: holds no audio files ({' '.join(sorted(AUDIO_SUFFIXES))})", file=sys.stderr)
            return 1
    num_bad = 0
    for file in files:
        try:
            for text in transcriber.partial_texts(file) if stream else [transcriber.text(file)]:
                print(f"{file}\t{text}", flush=True)
        except AudioError as error:
            print(f"{error}; skipped", file=sys.stderr, flush=True)
            num_bad += 1
    return num_bad


def _scorer(config: Config, vocabulary: CharacterVocabulary, *, ranks: Ranks) -> WeightedScorer | None:
    texts = texts_of(training_cuts(open_training_data(config.data, ranks=ranks)))
    return build_scorer(config.decode.ngram, vocabulary=vocabulary, texts=texts)


def _new_symbols(log_probs: Tensor, *, last: Tensor | None) -> list[int]:
    """What the frames (1, t, V) add to the greedy labelling, where `last` (1, 1, V) is the frame before them."""
    joint = log_probs if last is None else torch.cat([last, log_probs], dim=1)
    found = greedy_search(joint, torch.tensor([joint.shape[1]]))[0]
    first = 0 if last is None else 1
    return [symbol for symbol, frame in zip(found.ids, found.frames, strict=True) if frame >= first]


if __name__ == "__main__":
    sys.exit(main())
