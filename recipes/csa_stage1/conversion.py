"""One clip: read, made mono at one rate, trimmed, written as FLAC. Runs in the workers of `prepare`."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from core.data.reading import BadSample, read_place
from core.rundir.whole_files import appears_whole, remove_unfinished
from core.speech.resampling import resample
from recipes.csa_stage1.sources import Utterance
from recipes.csa_stage1.trimming import trimmed


class Converted(NamedTuple):
    """A prepared clip: its file, and its line of the manifest."""

    rel_path: str
    num_bytes: int
    record: dict[str, Any]


@dataclass(frozen=True)
class Conversion:
    """The way that clips are made, and below which folder. `top_db`: None leaves silence at the ends as it is."""

    output: Path
    sample_rate_hz: int
    top_db: float | None

    def __call__(self, utterance: Utterance | BadSample) -> Converted | BadSample:
        """Convert an utterance; what cannot be used comes back as BadSample, and has no file."""
        if isinstance(utterance, BadSample):
            return utterance
        path = self.output / utterance.rel_path
        try:
            samples, start_s = self._samples(utterance)
        except BadSample as error:
            path.unlink(missing_ok=True)  # one that was made otherwise
            return error
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path)
        with appears_whole(path) as file:
            soundfile.write(file, samples, self.sample_rate_hz, format="FLAC", subtype="PCM_16")
        record = self._record(utterance, path, num_samples=len(samples), start_s=start_s)
        return Converted(utterance.rel_path, path.stat().st_size, record)

    def _samples(self, utterance: Utterance) -> tuple[np.ndarray, float]:
        """Return the clip, and how much was cut off before it, in seconds."""
        if not any((one.get("text") or "").strip() for one in utterance.supervisions):
            raise BadSample(utterance.sample_id, "no text", utterance.path)
        place = utterance.audio()
        channels = [place.channel] if utterance.place is not None else place.channels
        each = [read_place(place._replace(channel=channel)) for channel in channels]
        samples = resample(np.mean(each, axis=0), from_hz=place.sample_rate_hz, to_hz=self.sample_rate_hz)
        if self.top_db is None:
            return samples, 0.0
        start, end = trimmed(samples, top_db=self.top_db)
        if start == end:
            raise BadSample(utterance.sample_id, "nothing is left after trimming", utterance.path)
        return samples[start:end], start / self.sample_rate_hz

    def _record(self, utterance: Utterance, path: Path, *, num_samples: int, start_s: float) -> dict[str, Any]:
        duration_s, name = num_samples / self.sample_rate_hz, utterance.sample_id
        source = {"type": "file", "channels": [0], "source": str(path)}
        recording = {"id": name, "sources": [source], "sampling_rate": self.sample_rate_hz, "num_samples": num_samples,
                     "duration": duration_s, "channel_ids": [0]}  # fmt: skip
        supervisions = [moved(one, by_s=-start_s, duration_s=duration_s) for one in utterance.supervisions]
        for supervision in supervisions:
            supervision |= {"recording_id": name, "channel": 0}
        return {"id": name, "start": 0.0, "duration": duration_s, "channel": 0, "supervisions": supervisions,
                "recording": recording, "type": "MonoCut"}  # fmt: skip


def moved(supervision: dict[str, Any], *, by_s: float, duration_s: float) -> dict[str, Any]:
    """Return a supervision and its alignments with other times, kept within a clip of `duration_s`."""

    def within(start_s: float, length_s: float) -> tuple[float, float]:
        begin, end = (float(np.clip(time_s + by_s, 0, duration_s)) for time_s in (start_s, start_s + length_s))
        return round(begin, 4), round(end - begin, 4)

    supervision = deepcopy(supervision)
    length_s = supervision.get("duration", duration_s - by_s - supervision["start"])
    supervision["start"], supervision["duration"] = within(supervision["start"], length_s)
    for items in (supervision.get("alignment") or {}).values():
        for item in items:
            item[1], item[2] = within(item[1], item[2])
    return supervision
