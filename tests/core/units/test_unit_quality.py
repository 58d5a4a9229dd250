"""Layers compared as units: phones of the right frames, perfect units score 1, units of noise less."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem
from torch import Tensor

from core.data.index import write_manifest
from core.distributed import Ranks, init
from core.units.frame_labels import FrameGrid
from core.units.unit_quality import HeldOut, QualityConfig, compare

GRID = FrameGrid()
PHONES = ["a", "b", "c", "d"]
SECONDS_OF_PHONE = 0.2


@dataclass(frozen=True)
class Levels:
    """The loudness of a frame's middle, which says the phone of the clips below, and noise."""

    noise: float
    name = "levels"
    layer = None
    checkpoint = None
    rate_hz = 50.0
    dim = 1

    def __call__(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        frames = audio.unfold(1, GRID.window_samples, GRID.hop_samples)[..., 180:220].abs().mean(-1, keepdim=True)
        torch.manual_seed(0)
        return frames + self.noise * torch.randn_like(frames), (num_samples - 400) // 320 + 1


def corpus(folder: Path, *, with_phones: bool) -> Path:
    cuts = []
    for number in range(8):
        spoken = np.random.default_rng(number).integers(len(PHONES), size=12)
        samples = np.repeat((spoken + 1) / 5, int(16000 * SECONDS_OF_PHONE)) * np.tile([1, -1], 19200)
        path = folder / f"{number}.wav"
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        recording = Recording.from_file(path, recording_id=str(number))
        cut = MonoCut(str(number), 0.0, recording.duration, 0, [], recording=recording)
        if with_phones:
            items = [
                AlignmentItem(PHONES[p], place * SECONDS_OF_PHONE, SECONDS_OF_PHONE) for place, p in enumerate(spoken)
            ]
            spans = SupervisionSegment(str(number), str(number), 0.0, recording.duration, alignment={"phone": items})
            cut.supervisions.append(spans)
        cuts.append(cut)
    write_manifest(cuts, folder / "speech.jsonl")
    return folder / "speech.jsonl"


@pytest.fixture
def ranks() -> Ranks:
    return init(device="cpu")


@pytest.mark.parametrize("with_phones", [True, False])
def test_perfect_units_beat_noisy_ones(with_phones: bool, tmp_path: Path, ranks: Ranks) -> None:
    manifest = str(corpus(tmp_path, with_phones=with_phones))
    config = QualityConfig(manifest=manifest, fit=manifest, layers=[1], num_clusters=4)
    held_out = HeldOut.open(config, grid=GRID, seed=0)
    found = compare({"noisy": Levels(0.3), "exact": Levels(0.0)}, held_out, rivals=["noisy"], ranks=ranks)
    scores = found.scores()
    assert scores["exact/clusters_used"] == 4
    if not with_phones:
        assert "exact/pnmi" not in scores and not found.gains
        return
    assert scores["exact/pnmi"] == pytest.approx(1.0) and scores["exact/phone_purity"] == 1.0
    assert scores["noisy/pnmi"] < 0.5
    assert scores["exact/pnmi_over_noisy"] == pytest.approx(1 - scores["noisy/pnmi"])
    assert 0 < scores["exact/pnmi_over_noisy_low"] <= scores["exact/pnmi_over_noisy_high"]
    assert "PNMI of exact less noisy" in found.describe()
