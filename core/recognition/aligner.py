"""When each word of a transcript is said, found by a trained run of recipe lmu_gigaspeech.

The CTC model says near which frames the letters of a word are; its peaks lie somewhere within their sounds. So the edge
between two words is put where the speech is quietest between the middles of their nearest letters, and where it is as
quiet for longer, that is a pause which belongs to neither.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.data.reading import BadSample, place_of, read_place
from core.recognition.alignment import ctc_spans
from core.recognition.transcriber import Recognizer
from core.speech.resampling import resample
from core.text.normalization import normalize_transcript
from core.text.vocabulary import CharacterVocabulary

_HOP_S, _WINDOW_S = 0.005, 0.02  # of the loudness
_PAUSE_DB = 6.0  # as quiet as the quietest place: at most so much louder


@dataclass(frozen=True)
class Aligner:
    """Finds the words of a manifest's lines: `aligner(record)` is the record with `alignment["word"]`.

    It is None where the words are known already, or cannot be told.
    """

    recognizer: Recognizer

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        supervisions = record["supervisions"]
        if len(supervisions) != 1 or (supervisions[0].get("alignment") or {}).get("word"):
            return None
        supervision = supervisions[0]
        written, spelled = spelled_words(
            supervision["text"], language=supervision.get("language") or "en", vocabulary=self.recognizer.vocabulary
        )
        rate_hz = self.recognizer.features.sample_rate_hz
        try:
            place = place_of(record)
            samples = resample(read_place(place), from_hz=place.sample_rate_hz, to_hz=rate_hz)
        except BadSample:
            return None  # training will come across it, and list it
        peaks_s = self._peaks_s(samples, spelled) if spelled else None
        if peaks_s is None:
            return None
        items = [
            [word, round(start_s, 4), round(end_s - start_s, 4), None]
            for word, (start_s, end_s) in zip(written, word_times(samples, peaks_s, rate_hz=rate_hz), strict=True)
        ]
        alignment = {**(supervision.get("alignment") or {}), "word": items}
        return {**record, "supervisions": [{**supervision, "alignment": alignment}]}

    @torch.inference_mode()
    def _peaks_s(self, samples: np.ndarray, spelled: list[list[int]]) -> list[tuple[float, float]] | None:
        """Return the middles of each word's first and last letter in seconds; None where the text does not fit in."""
        features = self.recognizer.hear(samples)
        if features is None:
            return None
        log_probs = self.recognizer.log_probs(features)[0][0].float().cpu().numpy()  # (T, V)
        space = self.recognizer.vocabulary.ids.get(" ")
        ids: list[int] = []
        edges: list[tuple[int, int]] = []
        for letters in spelled:
            if ids and space is not None:
                ids.append(space)
            edges.append((len(ids), len(ids) + len(letters) - 1))
            ids += letters
        spans = ctc_spans(log_probs, ids)
        if spans is None:
            return None
        frame_s = len(samples) / self.recognizer.features.sample_rate_hz / len(log_probs)
        middles_s = [(span.first + span.last + 1) / 2 * frame_s for span in spans]
        return [(middles_s[first], middles_s[last]) for first, last in edges]


def spelled_words(text: str, *, language: str, vocabulary: CharacterVocabulary) -> tuple[list[str], list[list[int]]]:
    """Return the words as they are written, and the ids of the letters that are said in each.

    A word without any is joined to the word before it, the first one to the one behind it.
    """
    written: list[str] = []
    spelled: list[list[int]] = []
    pending = ""
    for word in text.split():
        ids = vocabulary.encode_known(normalize_transcript(word, language=language) or "")[0]
        if ids:
            written.append(f"{pending} {word}".strip())
            spelled.append(ids)
            pending = ""
        elif written:
            written[-1] += f" {word}"
        else:
            pending = f"{pending} {word}".strip()
    return written, spelled


def word_times(samples: np.ndarray, peaks_s: list[tuple[float, float]], *, rate_hz: int) -> list[tuple[float, float]]:
    """Return start and end of each word in seconds, from the middles of its first and last letter."""
    loudness_db = _loudness_db(samples, rate_hz=rate_hz)
    begin_s, end_s = 0.0, len(samples) / rate_hz
    after_s = [_quiet(loudness_db, last, first) for (_, last), (first, _) in itertools.pairwise(peaks_s)]
    edges = [_quiet(loudness_db, begin_s, peaks_s[0][0]), *after_s, _quiet(loudness_db, peaks_s[-1][1], end_s)]
    return [(before[1], after[0]) for before, after in itertools.pairwise(edges)]


def _quiet(loudness_db: np.ndarray, start_s: float, end_s: float) -> tuple[float, float]:
    """Return the stretch around the quietest place between two times that is nearly as quiet."""
    first, last = int(start_s / _HOP_S), max(int(start_s / _HOP_S), int(end_s / _HOP_S))
    part = loudness_db[first : last + 1]
    if len(part) == 0:
        return start_s, end_s
    quietest = int(part.argmin())
    loud = np.flatnonzero(part > part[quietest] + _PAUSE_DB)
    begin = int(loud[loud < quietest].max(initial=-1)) + 1
    end = int(loud[loud > quietest].min(initial=len(part)))
    if end - begin == 1 or begin == end:
        middle = (first + quietest) * _HOP_S
        return max(middle, start_s), max(middle, start_s)
    return max((first + begin) * _HOP_S, start_s), min((first + end - 1) * _HOP_S, max(end_s, start_s))


def _loudness_db(samples: np.ndarray, *, rate_hz: int) -> np.ndarray:
    """Return the loudness of windows around every 5 ms: (N,)."""
    window, hop = round(_WINDOW_S * rate_hz), round(_HOP_S * rate_hz)
    sums = np.concatenate([[0.0], np.cumsum(np.pad(np.asarray(samples, np.float64), (window // 2, window)) ** 2)])
    starts = np.arange(0, len(samples), hop)
    return 10 * np.log10((sums[starts + window] - sums[starts]) / window + 1e-10)
