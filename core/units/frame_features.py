"""What is clustered: features of every frame of a clip, of MFCC or of a hidden layer, read in batches of like lengths.

features = MfccFeatures("torchaudio")                                          # iteration 1
features = HiddenFeatures(model.hubert, layer=6, grid=grid, dim=768, checkpoint=hash)      # iteration 2, 3, ...
for row, frames in extract(features, index, rows, batch_s=240, device=device, note_bad=note):
    ...                                                                         # frames (T, D)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.data.index import ManifestIndex
from core.data.reading import BadSample, read_cut
from core.train.trained import TrainedRun
from core.units.frame_labels import FrameGrid
from core.units.masked_speech import CropConfig
from core.units.mfcc import HOP_SAMPLES, SAMPLE_RATE_HZ, Convention, Mfcc

NoteBad = Callable[[BadSample], object]


class FrameFeatures(Protocol):
    """The features of frames, and the facts by which labels made of them are known (see LabelCard)."""

    @property
    def name(self) -> str: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def checkpoint(self) -> str | None: ...
    @property
    def rate_hz(self) -> float: ...
    @property
    def dim(self) -> int: ...

    def __call__(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, T, D) and their frames (B,) of audio (B, S), num_samples (B,)."""


@dataclass(frozen=True)
class MfccFeatures:
    """MFCC-39, a frame every 10 ms."""

    convention: Convention
    layer = None
    checkpoint = None
    rate_hz = SAMPLE_RATE_HZ / HOP_SAMPLES
    dim = 39

    @property
    def name(self) -> str:
        return f"mfcc:{self.convention}"

    def __call__(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        features, num_frames = self._mfcc(audio, num_samples)
        return features, num_frames

    @cached_property
    def _mfcc(self) -> Mfcc:
        return Mfcc(self.convention)


class HiddenModel(Protocol):
    """A model with layers to look at, such as core.models.hubert.model.Hubert."""

    def hidden(self, audio: Tensor, num_samples: Tensor, *, layer: int) -> tuple[Tensor, Tensor]: ...


class ConfiguredModel(HiddenModel, Protocol):
    """A model that also says the grid of its frames: `hop_samples`, `window_samples`, and their width: `dim`."""

    @property
    def config(self) -> Any: ...


@dataclass(frozen=True)
class HiddenFeatures:
    """The output of a layer.

    A clip alone in its batch is cut at frames of the grid into parts of `most_s`: attention over an hour would need
    more memory than there is. `normalize`: as the model was trained (see CropConfig). `smooth_frames`: each frame is
    the mean of so many around it, weighted by a triangle.
    """

    model: HiddenModel
    layer: int
    grid: FrameGrid
    dim: int
    checkpoint: str | None
    normalize: bool
    smooth_frames: int = 1
    most_s: float = 100.0

    @property
    def name(self) -> str:
        return hidden_name(self.smooth_frames)

    @property
    def rate_hz(self) -> float:
        return self.grid.rate_hz

    def __call__(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalize:
            audio = _normalized(audio, num_samples)
        frames, num_frames = self._hidden(audio, num_samples)
        return smoothed(frames, num_frames, width=self.smooth_frames), num_frames

    def _hidden(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        most_frames = int(self.most_s * self.rate_hz)
        num_frames = self.grid.num_frames(audio.size(1))
        if len(audio) > 1 or num_frames <= most_frames:
            return self.model.hidden(audio, num_samples, layer=self.layer)
        parts = []
        for first in range(0, num_frames, most_frames):
            start = first * self.grid.hop_samples
            length = self.grid.num_samples(min(most_frames, num_frames - first))
            part = audio[:, start : start + length]
            parts.append(self.model.hidden(part, torch.full_like(num_samples, length), layer=self.layer)[0])
        return torch.cat(parts, dim=1), torch.full_like(num_samples, num_frames)


def layers_of_run(
    run: TrainedRun, model: ConfiguredModel, layers: Sequence[int], *, checkpoint: str
) -> list[HiddenFeatures]:
    """Return features of layers of a run's model, which has the weights `checkpoint` and hears audio as in training."""
    config, normalize = model.config, run.section(CropConfig, "data.crop").normalize
    grid = FrameGrid(config.hop_samples, config.window_samples)
    return [HiddenFeatures(model, one, grid, config.dim, checkpoint, normalize) for one in layers]


def hidden_name(smooth_frames: int) -> str:
    """Return the name by which labels of a layer are known."""
    return "hubert" if smooth_frames == 1 else f"hubert:smooth{smooth_frames}"


def smoothed(frames: Tensor, num_frames: Tensor, *, width: int) -> Tensor:
    """Return the means (B, T, D) of `width` (odd) frames around each of (B, T, D), weighted by a triangle.

    Only a clip's own frames count, and there are fewer of them at its ends.
    """
    if width == 1:
        return frames
    is_valid = torch.arange(frames.size(1), device=frames.device) < num_frames[:, None]  # (B, T)
    counted = torch.cat([frames, torch.ones_like(frames[..., :1])], dim=-1) * is_valid[..., None]  # (B, T, D + 1)
    half = width // 2
    padded = F.pad(counted, (0, 0, half, half))
    total = sum(
        (half + 1 - abs(place - half)) * padded[:, place : place + frames.size(1)] for place in range(width)
    )  # (B, T, D + 1), the weights in its last column
    assert isinstance(total, Tensor)
    return total[..., :-1] / total[..., -1:].clamp(min=1)


@torch.no_grad()
def extract(
    features: FrameFeatures,
    index: ManifestIndex,
    rows: Sequence[int],
    *,
    batch_s: float,
    device: torch.device,
    note_bad: NoteBad,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (row, features (T, D) in fp32 on `device`) of each row, ordered by length.

    A batch has at most `batch_s` of padded audio, a longer clip is alone. A clip that cannot be read is noted and
    left out. ValueError naming a clip whose features are not finite.
    """
    for batch in _batches(index.durations_s, rows, batch_s=batch_s):
        found: list[tuple[int, np.ndarray]] = []
        for row in batch:
            try:
                found.append((row, read_cut(index.read(row), sample_rate_hz=SAMPLE_RATE_HZ).samples))
            except BadSample as error:
                note_bad(error)
        if not found:
            continue
        num_samples = torch.tensor([len(samples) for _, samples in found], device=device)
        waves = [torch.from_numpy(samples) for _, samples in found]
        audio = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(device)  # (B, S)
        frames, num_frames = features(audio, num_samples)
        clips = [one[:length].float() for one, length in zip(frames, num_frames.tolist(), strict=True)]
        is_finite = torch.stack([clip.isfinite().all() for clip in clips]).tolist()  # one wait for the device
        for (row, _), clip, is_sound in zip(found, clips, is_finite, strict=True):
            if not is_sound:
                whose = "" if features.checkpoint is None else f" of the weights {features.checkpoint}"
                raise ValueError(
                    f"clip {index.read(row).id}: {features.name} features{whose} are not finite; see whether the model "
                    "has diverged (its losses) and whether the audio is sound"
                )
            yield row, clip


def _normalized(audio: Tensor, num_samples: Tensor) -> Tensor:
    """Return audio (B, S) with mean 0 and variance 1 over the samples of each row, 0 behind them."""
    is_valid = torch.arange(audio.size(1), device=audio.device) < num_samples[:, None]
    counts = num_samples[:, None]
    centered = (audio - audio.masked_fill(~is_valid, 0.0).sum(1, keepdim=True) / counts).masked_fill(~is_valid, 0.0)
    return centered / (centered.square().sum(1, keepdim=True) / counts + 1e-5).sqrt()


def _batches(durations_s: np.ndarray, rows: Sequence[int], *, batch_s: float) -> Iterator[list[int]]:
    """Yield batches of rows of like lengths under the budget, the shortest first."""
    batch: list[int] = []
    for row in sorted(rows, key=lambda row: (float(durations_s[row]), row)):
        if batch and (len(batch) + 1) * durations_s[row] > batch_s:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
