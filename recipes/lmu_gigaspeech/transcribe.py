"""Text from audio files, by a trained run: one line `path<TAB>text` a file.

    python -m recipes.lmu_gigaspeech.transcribe --run runs/lmu_demo talk.wav recordings/ --ngram
    python -m recipes.lmu_gigaspeech.transcribe --run runs/lmu_causal talk.wav --stream

Folders are searched for audio files. A file that cannot be read is reported and skipped; the exit code is then 89.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from core.config.load import load
from core.distributed import joined
from core.job.errors import exit_on_error
from core.recognition.transcriber import Transcriber
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CONFIG, VOCABULARY
from core.speech.audio import AudioError
from recipes.lmu_gigaspeech.assembly import Config

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})


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
        with exit_on_error():
            transcriber = Transcriber.open(arguments.run, ranks=ranks, use_ngram=arguments.ngram)
        num_bad = 0
        for path in arguments.paths:
            num_bad += _transcribe(transcriber, path, stream=arguments.stream)
    return ExitCode.DATA if num_bad else ExitCode.DONE


def check_can_stream(config: Config) -> None:
    """Raise ValueError unless text can be given before the end of the audio is known."""
    if not config.model.encoder.causal:
        raise ValueError("--stream needs model.encoder.causal=true, got false: the model looks into the future")
    if config.data.features.normalize == "utterance":
        raise ValueError(
            "--stream needs data.features.normalize=corpus or none, got utterance: "
            "the features of the beginning depend on the whole utterance; train with corpus"
        )


def _transcribe(transcriber: Transcriber, path: Path, *, stream: bool) -> int:
    """Print the text of a file, or of all audio files below a folder; return how many could not be read."""
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


if __name__ == "__main__":
    sys.exit(main())
