"""Silence at both ends of a clip, cut off where `librosa.effects.trim` cuts."""

import numpy as np

FRAME, HOP = 2048, 512
_LOWEST_POWER = 1e-10


def trimmed(samples: np.ndarray, *, top_db: float) -> tuple[int, int]:
    """Return start, end of the samples (S,) from the first to the last frame within `top_db` of the loudest.

    Frames of 2048 samples, zeros beyond the ends, centered at every 512th sample; loud is their mean square. librosa
    keeps digital silence whole, as all of it is as loud as the loudest; here nothing of it is left: (0, 0).
    """
    if len(samples) == 0 or not samples.any():
        return 0, 0
    padded = np.pad(np.asarray(samples, np.float64), FRAME // 2)
    sums = np.concatenate([[0.0], np.cumsum(padded**2)])
    starts = np.arange(0, len(samples) + 1, HOP)
    power = np.maximum((sums[starts + FRAME] - sums[starts]) / FRAME, _LOWEST_POWER)
    loud = np.flatnonzero(10 * np.log10(power / power.max()) > -top_db)
    return int(loud[0]) * HOP, min(len(samples), (int(loud[-1]) + 1) * HOP)
