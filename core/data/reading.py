"""One cut of a manifest as audio, or the reason why it cannot be used."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from core.speech.audio import AudioError, decode, resample

if TYPE_CHECKING:  # lhotse takes long to import, and whoever only handles bad samples needs none of it
    from lhotse import MonoCut
    from lhotse.audio import AudioSource

_MISSING_TOLERANCE_S = 0.025  # manifests round durations; decoders of lossy formats drop a little at the end
_LARGEST_SAMPLE = 2.0**31  # a float file with more is damaged, and its power would leave the range of float32


class BadSample(Exception):  # noqa: N818 (a word of the design; it is collected as often as it is raised)
    """A cut that training skips, counts and lists."""

    def __init__(self, sample_id: str, reason: str, path: str) -> None:
        super().__init__(sample_id, reason, path)  # all of them, so that it can be sent between processes
        self.sample_id = sample_id
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{self.sample_id}: {self.reason} ({self.path})"

    def to_record(self) -> dict[str, str]:
        """Return a line of `bad_samples.jsonl`."""
        return {"sample_id": self.sample_id, "reason": self.reason, "path": self.path}


@dataclass(frozen=True)
class Reading:
    """A cut and its audio."""

    cut: "MonoCut"
    samples: np.ndarray  # (S,) float32
    sample_rate_hz: int
    path: str

    @property
    def sample_id(self) -> str:
        return str(self.cut.id)

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate_hz

    def text(self) -> str:
        """Return what is said in the cut, in the order of time; BadSample where there is nothing."""
        supervisions = sorted(self.cut.supervisions, key=lambda supervision: supervision.start)
        text = " ".join(supervision.text.strip() for supervision in supervisions if (supervision.text or "").strip())
        if not text:
            raise BadSample(self.sample_id, "no text", self.path)
        return text

    def bad(self, reason: str) -> BadSample:
        """Return an error to raise where the sample cannot be used, e.g. for a letter outside the vocabulary."""
        return BadSample(self.sample_id, reason, self.path)


def read_cut(cut: "MonoCut", *, sample_rate_hz: int, allowed_s: float | None = None) -> Reading:
    """Decode a cut and bring it to `sample_rate_hz`.

    Raises BadSample for a file that is missing, empty, truncated or damaged; whose rate or number of channels is not
    what the manifest says; that holds NaN, infinities or nothing but one constant; and for a cut longer than
    `allowed_s`. The channel is the one that the cut names, of as many as the manifest says there are.
    """
    source = _source(cut)
    content = source.source if isinstance(source.source, bytes) else None
    path = str(source.source if content is None else _origin(cut))
    if allowed_s is not None and cut.duration > allowed_s:
        raise BadSample(cut.id, f"{cut.duration:.3f} s long, {allowed_s:.3f} s are allowed", path)
    place = Place(cut.id, path, cut.start, cut.duration, cut.sampling_rate, list(source.channels), cut.channel)
    samples = resample(read_place(place, content=content), from_hz=cut.sampling_rate, to_hz=sample_rate_hz)
    return Reading(cut=cut, samples=np.ascontiguousarray(samples), sample_rate_hz=sample_rate_hz, path=path)


class Place(NamedTuple):
    """Where audio is, and what the manifest says of it: `duration_s` from `start_s` on of one of a file's channels."""

    sample_id: str
    path: str
    start_s: float
    duration_s: float
    sample_rate_hz: int
    channels: list[int]
    channel: int


def place_of(record: dict[str, Any]) -> Place:
    """Return where the audio of a cut is, by its line of the manifest as JSON. BadSample where it is not in a file."""
    sample_id, recording, channel = str(record["id"]), record["recording"], record["channel"]
    if recording.get("transforms"):
        raise BadSample(sample_id, "its recording has transforms; save them as audio first", "")
    for source in recording["sources"]:
        if source["type"] == "file" and channel in source["channels"]:
            return Place(
                sample_id=sample_id,
                path=source["source"],
                start_s=float(record["start"]),
                duration_s=float(record["duration"]),
                sample_rate_hz=int(recording["sampling_rate"]),
                channels=source["channels"],
                channel=channel,
            )
    raise BadSample(sample_id, f"its recording has no file with channel {channel}", "")


def read_place(place: Place, *, content: bytes | None = None) -> np.ndarray:
    """Return samples (S,) float32, only these decoded; BadSample as `read_cut`. `content`: what the file holds."""
    sample_id, path = place.sample_id, place.path
    try:
        decoded = decode(Path(path), content=content, start_s=place.start_s, duration_s=place.duration_s)
    except AudioError as error:
        raise BadSample(sample_id, error.reason, path) from None
    if decoded.sample_rate_hz != place.sample_rate_hz:
        reason = f"sampled at {decoded.sample_rate_hz} Hz, the manifest says {place.sample_rate_hz} Hz"
        raise BadSample(sample_id, reason, path)
    num_channels = decoded.samples.shape[1]
    if num_channels != len(place.channels):
        reason = f"{num_channels} channel(s), the manifest says {len(place.channels)}"
        raise BadSample(sample_id, reason, path)
    samples = decoded.samples[:, place.channels.index(place.channel)]
    problem = _problem(samples, duration_s=len(samples) / decoded.sample_rate_hz, expected_s=place.duration_s)
    if problem is not None:
        raise BadSample(sample_id, problem, path)
    return samples


def _source(cut: "MonoCut") -> "AudioSource":
    """Return where the cut's channel is."""
    recording: Any = cut.recording
    if recording is None:
        raise BadSample(cut.id, "no recording", "")
    if recording.transforms:
        raise BadSample(cut.id, "its recording has transforms; save them as audio first", "")
    for source in recording.sources:
        if cut.channel in source.channels:
            if source.type not in ("file", "memory"):
                raise BadSample(cut.id, f"audio of type {source.type!r}; only files can be read", str(source.source))
            return source
    raise BadSample(cut.id, f"its recording has no channel {cut.channel}", "")


def _origin(cut: "MonoCut") -> str:
    """Return the shard of a cut whose audio came with it."""
    return str((cut.custom or {}).get("shard_origin", "memory"))


def _problem(samples: np.ndarray, *, duration_s: float, expected_s: float) -> str | None:
    if duration_s < expected_s - _MISSING_TOLERANCE_S:
        return f"truncated: {duration_s:.3f} s of {expected_s:.3f} s"
    lowest, highest = float(samples.min()), float(samples.max())  # NaN where any sample is
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        return "NaN or infinite samples"
    if max(-lowest, highest) > _LARGEST_SAMPLE:
        return f"a sample of {max(-lowest, highest):.3g}; full scale is 1"
    if lowest == highest:
        return f"silence: every sample is {lowest:g}"
    return None
