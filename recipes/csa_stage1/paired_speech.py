"""Pairs of speech and text: crops of clips with what is said in them, tokenized and normalized in the workers.

Everything random is keyed by the draws of the data plan (word_crops.py): a pair is the same in any batch, worker, rank
and after any resume. An evaluation, whose draws are the same each time, gets the same pairs each time.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from core.config.schema import section
from core.data.batch import TensorFields
from core.data.index import ManifestIndex
from core.data.pcm_cache import PcmCache
from core.data.reading import BadSample, Place, place_of, read_place
from core.samplers.blend import Draw, Draws
from core.speech.audio import zero_mean_unit_variance
from core.speech.resampling import resample
from core.text.normalization import normalize_transcript
from core.text.tokenization import Tokenizer
from core.text.words import Words, words_of
from recipes.csa_stage1.word_crops import CropSampler, word_crop

_DUMMY_S = 1.0


@section
class PairConfig:
    """The input of the encoders. `normalize`: each row to mean 0 and variance 1, as wav2vec 2.0 wants it. `text`: as it
    is written, or as it is spoken (lower case, no punctuation, English numbers in words).
    """

    sample_rate_hz: int = 16000
    normalize: bool = True
    text: Literal["written", "spoken"] = "written"

    def text_of(self, written: str, *, language: str) -> str | None:
        """Return what the model reads; None where nothing is spoken."""
        return normalize_transcript(written, language=language) if self.text == "spoken" else written


@dataclass(frozen=True)
class PairBatch(TensorFields):
    """What one forward sees. `num_targets`: pairs. `text_keys`: equal where the spoken words are equal.

    An empty micro-batch is one silent row that counts for nothing.
    """

    audio: Tensor  # (B, S) float32
    num_samples: Tensor  # (B,) int64
    token_ids: Tensor  # (B, L) int64, padded with the tokenizer's padding
    num_tokens: Tensor  # (B,) int64, at least 1
    text_keys: Tensor  # (B,) int64
    sample_ids: list[str]
    num_targets: int
    length: float
    padded_length: float
    texts: list[str] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)
    unit: str = "s"


@dataclass(frozen=True)
class Pair:
    """One crop, or one whole clip."""

    sample_id: str
    samples: np.ndarray  # (S,) float32
    text: str
    text_key: int
    token_ids: list[int]


@dataclass(frozen=True)
class PairedSpeech(torch.utils.data.Dataset[PairBatch]):
    """`dataset[draws]` is the batch of one micro-batch of the plan.

    `crops`: how clips are cropped; None for whole clips. `caches`: of each index, None to decode its files.
    """

    indexes: Sequence[ManifestIndex]
    caches: Sequence[PcmCache | None]
    config: PairConfig
    crops: CropSampler | None
    tokenizer: Tokenizer
    max_tokens: int
    segment: int = 0  # of the plan: the epochs of each begin at 0

    def __post_init__(self) -> None:
        for index, cache in zip(self.indexes, self.caches, strict=True):
            if cache is not None and cache.card.sample_rate_hz != self.config.sample_rate_hz:
                rate_hz = cache.card.sample_rate_hz
                raise ValueError(f"{index}: its cache has {rate_hz} Hz, sample_rate_hz={self.config.sample_rate_hz}")

    def __getitem__(self, draws: Sequence[Draw]) -> PairBatch:
        lengths_s, places = self._drawn(draws)
        pairs: list[Pair] = []
        bad: list[BadSample] = []
        for draw, length_s, place in zip(draws, lengths_s, places, strict=True):
            try:
                pairs.append(self._pair(draw, length_s=length_s, place=place))
            except BadSample as error:
                bad.append(error)
        return self._collate(pairs, bad)

    def _drawn(self, draws: Sequence[Draw]) -> tuple[list[float], list[float]]:
        """Return the length of each draw's crop, infinite for the whole clip, and where it is meant to begin."""
        if self.crops is None or not draws:
            return [np.inf] * len(draws), [0.0] * len(draws)
        source, epoch, row = (np.array(column) for column in zip(*draws, strict=True))
        durations_s = np.array([self.indexes[draw.source].durations_s[draw.row] for draw in draws], np.float32)
        arrays = Draws(source, epoch, row, durations_s, repeats=False)
        lengths_s = self.crops.lengths_s(arrays, segment=self.segment)
        whole = lengths_s >= durations_s
        return np.where(whole, np.inf, lengths_s).tolist(), self.crops.places(arrays, segment=self.segment).tolist()

    def _pair(self, draw: Draw, *, length_s: float, place: float) -> Pair:
        record = self.indexes[draw.source].record(draw.row)
        clip, words = place_of(record), words_of(record)
        start_s, duration_s, text = self._part(clip, words, length_s=length_s, place=place)
        spoken = normalize_transcript(text, language=language_of(record))
        wanted = self.config.text_of(text, language=language_of(record))
        if wanted is None:
            raise BadSample(clip.sample_id, f"no words are spoken in {text!r}", clip.path)
        text = wanted
        token_ids = self.tokenizer.encode(text)
        if len(token_ids) > self.max_tokens:
            reason = f"{len(token_ids)} tokens, {self.max_tokens} are allowed"
            raise BadSample(clip.sample_id, reason, clip.path)
        samples = self._read(draw, clip, start_s=start_s, duration_s=duration_s)
        if self.config.normalize:
            samples = zero_mean_unit_variance(samples, epsilon=1e-7)  # as transformers
        return Pair(clip.sample_id, samples, text, text_key(spoken or text), token_ids)

    def _part(self, clip: Place, words: Words, *, length_s: float, place: float) -> tuple[float, float, str]:
        """Return start and duration in the clip, and the text."""
        if not words.texts:
            raise BadSample(clip.sample_id, "no text", clip.path)
        max_s = np.inf if self.crops is None else self.crops.config.max_s
        crop = word_crop(words, duration_s=clip.duration_s, length_s=length_s, place=place, max_s=max_s)
        if crop is None:
            raise BadSample(clip.sample_id, f"every word is longer than {max_s:g} s", clip.path)
        return crop.start_s, crop.end_s - crop.start_s, words.text(crop.first, crop.last)

    def _read(self, draw: Draw, clip: Place, *, start_s: float, duration_s: float) -> np.ndarray:
        """Decode only the crop, where the file has the rate we want; else all, as resampling looks around."""
        rate_hz = self.config.sample_rate_hz
        start, num = round(start_s * rate_hz), max(1, round(duration_s * rate_hz))
        cache = self.caches[draw.source]
        if cache is not None:
            samples = cache.read(draw.row, start=start, num=num)
            if len(samples) == 0:
                raise BadSample(clip.sample_id, "could not be read when the cache was made", clip.path)
            return samples
        if clip.sample_rate_hz == rate_hz:
            part = clip._replace(start_s=clip.start_s + start / rate_hz, duration_s=num / rate_hz)
            return read_place(part)
        samples = resample(read_place(clip), from_hz=clip.sample_rate_hz, to_hz=rate_hz)
        return samples[start : start + num]

    def _collate(self, pairs: list[Pair], bad: list[BadSample]) -> PairBatch:
        rate_hz, tokenizer = self.config.sample_rate_hz, self.tokenizer
        rows = pairs or [Pair("", np.zeros(round(_DUMMY_S * rate_hz), np.float32), "", 0, tokenizer.encode(""))]
        num_samples = np.array([len(row.samples) for row in rows])
        num_tokens = np.array([len(row.token_ids) for row in rows])
        audio = np.zeros((len(rows), num_samples.max()), np.float32)
        token_ids = np.full((len(rows), num_tokens.max()), tokenizer.pad_id, np.int64)
        for number, row in enumerate(rows):
            audio[number, : len(row.samples)] = row.samples
            token_ids[number, : len(row.token_ids)] = row.token_ids
        return PairBatch(
            audio=torch.from_numpy(audio),
            num_samples=torch.from_numpy(num_samples),
            token_ids=torch.from_numpy(token_ids),
            num_tokens=torch.from_numpy(num_tokens),
            text_keys=torch.tensor([row.text_key for row in rows]),
            sample_ids=[row.sample_id for row in pairs],
            num_targets=len(pairs),
            length=sum(len(row.samples) for row in pairs) / rate_hz,
            padded_length=len(pairs) * audio.shape[1] / rate_hz,
            texts=[row.text for row in pairs],
            bad=bad,
        )


def text_key(text: str) -> int:
    """Return 64 bits of a hash, equal for equal texts."""
    digest = hashlib.blake2b(text.casefold().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def language_of(record: dict[str, Any]) -> str:
    return (record["supervisions"][0].get("language") if record["supervisions"] else None) or "en"
