"""Speech as through another microphone, by a speaker who turns away and back: what is said stays, and so do its labels.

A model that cannot know how loud or how bright a clip was recorded does not spend its units on it. That matters where
there is one speaker and little speech.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from core.config.schema import section


@section
class ChannelConfig:
    """A random channel. `loudness_db`: standard deviation of a gain that is drawn anew every `knot_s` seconds, and
    linear in decibels. `tilt`: y[n] = x[n] + a x[n - 1], a uniform in [-tilt, tilt], lifts high or low frequencies.
    """

    loudness_db: Annotated[float, Field(ge=0, le=40)] = 8.0
    knot_s: Annotated[float, Field(gt=0)] = 0.3
    tilt: Annotated[float, Field(ge=0, lt=1)] = 0.6


@dataclass(frozen=True)
class Channel:
    config: ChannelConfig
    sample_rate_hz: int

    def __call__(self, samples: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        """Map samples (S,) float32 to (S,) float32."""
        config = self.config
        factor = np.float32(rng.uniform(-config.tilt, config.tilt))
        tilted = samples.copy()
        tilted[1:] += factor * samples[:-1]
        knots = (np.arange(len(samples)) / self.sample_rate_hz) / config.knot_s + rng.uniform()  # (S,)
        gains_db = rng.normal(
            scale=config.loudness_db, size=int(len(samples) / self.sample_rate_hz / config.knot_s) + 3
        )
        gain = 10 ** (np.interp(knots, np.arange(len(gains_db)), gains_db) / 20)
        louder: np.ndarray = tilted * gain.astype(np.float32)
        return louder
