"""Features of clips: in batches as alone, long clips in parts, unreadable ones noted."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording
from torch import Tensor

from core.data.index import ManifestIndex, write_manifest
from core.data.reading import BadSample
from core.units.frame_features import HiddenFeatures, MfccFeatures, extract, smoothed
from core.units.frame_labels import FrameGrid
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics

LENGTHS = [9000, 16000, 5200, 40000, 12345]  # samples
GRID = FrameGrid()


class Windows:
    """A model whose frame is the mean of its window: what it must be, wherever a clip is cut."""

    def __init__(self) -> None:
        self.most_frames = 0

    def hidden(self, audio: Tensor, num_samples: Tensor, *, layer: int) -> tuple[Tensor, Tensor]:
        frames = audio.unfold(1, GRID.window_samples, GRID.hop_samples).mean(-1, keepdim=True) * layer
        self.most_frames = max(self.most_frames, len(audio) * frames.size(1))
        return frames, (num_samples - GRID.window_samples) // GRID.hop_samples + 1


def hidden(model: Windows, *, most_s: float = 100.0, normalize: bool = False) -> HiddenFeatures:
    return HiddenFeatures(model, 2, GRID, dim=1, checkpoint=None, normalize=normalize, most_s=most_s)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ManifestIndex:
    folder = tmp_path_factory.mktemp("corpus")
    cuts = []
    for number, length in enumerate(LENGTHS):
        path = folder / f"{number}.wav"
        samples = np.random.default_rng(number).normal(0.1, 0.1, length)
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        recording = Recording.from_file(path, recording_id=str(number))
        cuts.append(MonoCut(str(number), 0.0, recording.duration, 0, [], recording=recording))
    write_manifest(cuts, folder / "speech.jsonl")
    (folder / "2.wav").write_bytes(b"no audio")
    return ManifestIndex.open(folder / "speech.jsonl")


def test_batches_change_nothing_and_bad_clips_are_noted(index: ManifestIndex) -> None:
    bad: list[BadSample] = []
    features = MfccFeatures("kaldi")
    device = torch.device("cpu")
    together = dict(extract(features, index, range(5), batch_s=4.0, device=device, note_bad=bad.append))
    assert sorted(together) == [0, 1, 3, 4] and [one.sample_id for one in bad] == ["2"]
    for row, frames in together.items():
        samples = torch.from_numpy(soundfile.read(index.manifest.parent / f"{row}.wav", dtype="float32")[0])[None]
        alone, num_frames = features(samples, torch.tensor([LENGTHS[row]]))
        assert len(frames) == num_frames.item() == 1 + (LENGTHS[row] - 400) // 160
        assert_close(frames, alone[0], rel=2e-6)


def test_a_batch_keeps_to_its_budget(index: ManifestIndex) -> None:
    model = Windows()
    list(extract(hidden(model), index, range(5), batch_s=1.6, device=torch.device("cpu"), note_bad=lambda bad: None))
    assert model.most_frames <= GRID.num_frames(40000), "the longest clip is alone, others are 1.6 s together"


def test_a_long_clip_is_cut_at_frames() -> None:
    audio = torch.randn(1, 100 * 320 + 250)
    num_samples = torch.tensor([audio.size(1)])
    whole, lengths = hidden(Windows())(audio, num_samples)
    model = Windows()
    parts, part_lengths = hidden(model, most_s=0.26)(audio, num_samples)
    assert model.most_frames == 13
    torch.testing.assert_close(parts, whole)
    assert part_lengths.tolist() == lengths.tolist() == [GRID.num_frames(audio.size(1))]


@pytest.mark.parametrize("width", [1, 3, 5, 9])
def test_smoothed_frames_are_weighted_means_of_their_clips_own(width: int) -> None:
    frames, num_frames = torch.randn(3, 12, 4), torch.tensor([12, 7, 1])
    found = smoothed(frames, num_frames, width=width)
    half = width // 2
    for row, length in enumerate(num_frames.tolist()):
        for place in range(length):
            near = range(max(0, place - half), min(length, place + half + 1))
            weights = [half + 1 - abs(other - place) for other in near]
            expected = np.average(frames[row, near.start : near.stop].numpy(), axis=0, weights=weights)
            assert_close(found[row, place], expected, rel=1e-6, of=frames)
    labels = replace(hidden(Windows()), smooth_frames=width).name
    assert labels == ("hubert" if width == 1 else f"hubert:smooth{width}")


def test_normalized_as_each_clip_alone() -> None:
    clips = [torch.randn(length) * 3 + 1 for length in (8000, 5000)]
    audio = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    found, lengths = hidden(Windows(), normalize=True)(audio, torch.tensor([8000, 5000]))
    for clip, one, length in zip(clips, found, lengths.tolist(), strict=True):
        plain = ((clip - clip.mean()) / (clip.var(correction=0) + 1e-5).sqrt())[None]
        expected, _ = hidden(Windows())(plain, torch.tensor([len(clip)]))
        assert_close(one[:length], expected[0])
