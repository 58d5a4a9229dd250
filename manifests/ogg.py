"""An utterance as an Ogg/Vorbis file and the cut that names it: the form of the audio of small corpora."""

from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

SAMPLE_RATE_HZ = 16_000


def ogg_utterance(samples: np.ndarray, audio: Path, *, name: str, text: str, language: str, speaker: str) -> MonoCut:
    """Encode (S,) samples of 16 kHz to the file `audio`; return a cut of the whole of it."""
    write_ogg(samples, audio)
    duration_s = len(samples) / SAMPLE_RATE_HZ
    source = AudioSource(type="file", channels=[0], source=str(audio))
    return MonoCut(
        id=name, start=0.0, duration=duration_s, channel=0,
        recording=Recording(name, [source], SAMPLE_RATE_HZ, len(samples), duration_s),
        supervisions=[SupervisionSegment(name, name, 0.0, duration_s, text=text, language=language, speaker=speaker)],
    )  # fmt: skip


def write_ogg(samples: np.ndarray, path: Path) -> None:
    """Encode (S,) samples of 16 kHz; the same samples make the same file but for the number of its stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, format="OGG", subtype="VORBIS") as file:
        for start in range(0, len(samples), SAMPLE_RATE_HZ):  # libsndfile overflows its stack in one long write
            file.write(samples[start : start + SAMPLE_RATE_HZ])
