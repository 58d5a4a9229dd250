"""Batches of masked speech from real files: alignment to the sample, keys, crops, padding, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording

from core.data.frame_labels import FrameGrid
from core.data.index import ManifestIndex, write_manifest
from core.data.label_store import LabelCard, LabelStore, manifest_print, write_store
from core.data.layer_drop import LayerDropStream
from core.data.masked_speech import CropConfig, MaskedBatch, MaskedSpeech
from core.data.masking import MaskConfig
from core.data.stream import LoaderConfig, TrainStream
from core.distributed import Ranks, init
from core.samplers.plan import Draw, Plan, PlanConfig, Source

RATE = 16000
GRID = FrameGrid()
LENGTHS = [16000, 9000, 24321, 5200]  # samples


def ramp(num_samples: int) -> np.ndarray:
    """A waveform whose samples say where they are, to the 24 bits of a FLAC file."""
    return (np.arange(num_samples) + 1) / 2**17


def place(sample: float) -> int:
    return round(float(sample) * 2**17) - 1


def corpus(
    folder: Path, *, rate_hz: float = 50.0, lengths: list[int] = LENGTHS, labels: list[np.ndarray] | None = None
) -> tuple[ManifestIndex, LabelStore]:
    """Label t of a clip is t."""
    cuts = []
    for number, length in enumerate(lengths):
        path = folder / f"{number}.flac"
        soundfile.write(path, ramp(length), RATE, subtype="PCM_24")
        recording = Recording.from_file(path, recording_id=str(number))
        cuts.append(MonoCut(str(number), 0.0, recording.duration, 0, [], recording=recording))
    write_manifest(cuts, folder / "speech.jsonl")
    index = ManifestIndex.open(folder / "speech.jsonl")
    step = round(rate_hz / 50)
    own = labels or [np.repeat(np.arange(GRID.num_frames(length)), step) for length in lengths]
    card = LabelCard(
        features="mfcc:torchaudio", layer=None, num_clusters=200, rate_hz=rate_hz, codebook="", checkpoint=None,
        manifest=manifest_print(index),
    )  # fmt: skip
    return index, write_store(folder / "labels", card, own)


def dataset(index: ManifestIndex, store: LabelStore, *, seed: int = 1, **crop: Any) -> MaskedSpeech:
    return MaskedSpeech([index], [store], GRID, CropConfig(**crop), MaskConfig(length=5), seed=seed)


def draws(*rows: int, epoch: int = 0) -> list[Draw]:
    return [Draw(0, epoch, row) for row in rows]


@pytest.mark.parametrize("rate_hz", [50.0, 100.0])
@pytest.mark.parametrize("crop", [{}, {"max_s": 0.4}, {"fit": "crop"}], ids=["whole", "cropped", "to the shortest"])
def test_each_label_is_that_of_the_samples_of_its_frame(tmp_path: Path, crop: dict[str, Any], rate_hz: float) -> None:
    index, store = corpus(tmp_path, rate_hz=rate_hz)
    for epoch in range(5):
        batch = dataset(index, store, **crop)[draws(0, 1, 2, 3, epoch=epoch)]
        assert not batch.bad and batch.sample_ids == ["0", "1", "2", "3"]
        for row in range(4):
            for t in range(int(batch.num_frames[row])):
                assert place(batch.audio[row, 320 * t]) == 320 * int(batch.labels[row, t])
            num_samples = int(batch.num_samples[row])
            assert GRID.num_frames(num_samples) == int(batch.num_frames[row])
            assert not batch.audio[row, num_samples:].any() and batch.audio[row, num_samples - 1] > 0
        if crop:
            assert batch.audio.shape[1] <= (6400 if "max_s" in crop else min(LENGTHS))
        assert torch.equal(batch.targets, batch.labels.gather(1, batch.masked_frames))
        assert (batch.masked_frames < batch.num_frames[:, None]).all()
        assert batch.num_targets == batch.masked_frames.numel() > 0


def test_a_batch_follows_from_its_draws_and_the_seed(tmp_path: Path) -> None:
    index, store = corpus(tmp_path)
    data = dataset(index, store, max_s=0.3)

    def same(one: MaskedBatch, other: MaskedBatch, *names: str) -> bool:
        return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)

    first = data[draws(0, 2)]
    assert same(first, data[draws(0, 2)], "audio", "labels", "masked_frames")
    assert not same(first, data[draws(0, 2, epoch=1)], "labels")
    assert not same(first, dataset(index, store, seed=2, max_s=0.3)[draws(0, 2)], "labels")
    assert not same(first, replace(data, segment=1)[draws(0, 2)], "labels")
    other = data[draws(2, 0)]  # another batch: the same crops, another mask
    assert torch.equal(first.audio[0], other.audio[1])
    assert not torch.equal(first.masked_frames.sort(0).values, other.masked_frames.sort(0).values)


def test_padding_ends_at_multiples_of_pad_frames(tmp_path: Path) -> None:
    index, store = corpus(tmp_path)
    shapes = {dataset(index, store, pad_frames=25)[draws(row)].audio.shape[1] for row in range(4)}
    assert shapes == {GRID.num_samples(25), GRID.num_samples(50), GRID.num_samples(75)}
    batch = dataset(index, store, pad_frames=25)[draws(0, 1)]
    assert batch.labels.shape == (2, 50)
    assert batch.padded_audio_s == pytest.approx(2 * GRID.num_samples(50) / RATE)
    assert batch.audio_s == pytest.approx(float(batch.num_samples.sum()) / RATE)


def test_normalized_rows_have_mean_0_and_variance_1(tmp_path: Path) -> None:
    index, store = corpus(tmp_path)
    batch = dataset(index, store, normalize=True)[draws(0, 1)]
    for row, count in enumerate(batch.num_samples.tolist()):
        audio = batch.audio[row, :count].double()
        assert abs(float(audio.mean())) < 1e-4 and float(audio.var()) == pytest.approx(1.0, rel=5e-2)  # 1e-5 is added


def test_labels_one_frame_off_are_used_and_others_refused(tmp_path: Path) -> None:
    right = [np.arange(GRID.num_frames(length)) for length in LENGTHS]
    labels = [right[0][:-1], np.append(right[1], 0), right[2][:-2], right[3][:0]]
    index, store = corpus(tmp_path, labels=labels)
    batch = dataset(index, store)[draws(0, 1, 2, 3)]
    assert batch.sample_ids == ["0", "1"]
    assert batch.num_frames.tolist() == [len(right[0]) - 1, len(right[1])]
    reasons = {bad.sample_id: bad.reason for bad in batch.bad}
    assert "73 labels for 75 frames" in reasons["2"] and "no labels" in reasons["3"]


def test_a_batch_without_usable_clips_counts_for_nothing(tmp_path: Path) -> None:
    index, store = corpus(tmp_path, lengths=[1600])  # 4 frames, spans of 5
    for batch in (dataset(index, store)[draws(0)], dataset(index, store)[[]]):
        assert batch.num_targets == 0 and batch.audio.shape[0] == 1 and batch.masked_frames.shape == (1, 0)
        assert not batch.audio.any() and batch.sample_ids == [] and batch.audio_s == 0
    assert "too few" in dataset(index, store)[draws(0)].bad[0].reason


def test_audio_at_another_rate_is_cropped_after_resampling(tmp_path: Path) -> None:
    time_s = np.arange(8000 * 2) / 8000
    soundfile.write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 200 * time_s), 8000)
    recording = Recording.from_file(tmp_path / "x.wav")
    write_manifest([MonoCut("x", 0.0, 2.0, 0, [], recording=recording)], tmp_path / "x.jsonl")
    index = ManifestIndex.open(tmp_path / "x.jsonl")
    card = LabelCard(features="f", layer=1, num_clusters=99, rate_hz=50.0, codebook="", checkpoint="", manifest="")
    store = write_store(tmp_path / "labels", card, [np.arange(99)])
    batch = dataset(index, store, max_s=0.5)[draws(0)]
    first = int(batch.labels[0, 0])
    expected = 0.5 * np.sin(2 * np.pi * 200 * (320 * first + np.arange(2000, 6000)) / RATE)
    np.testing.assert_allclose(batch.audio[0, 2000:6000], expected, atol=5e-3)


def test_labels_of_another_manifest_or_rate_are_refused(tmp_path: Path) -> None:
    index, store = corpus(tmp_path)
    (tmp_path / "more").mkdir()
    other, _ = corpus(tmp_path / "more", lengths=[16000] * 5)
    with pytest.raises(ValueError, match=r"labels of 4 cuts, .* has 5"):
        dataset(other, store)
    wrong = LabelCard(features="f", layer=1, num_clusters=9, rate_hz=75.0, codebook="", checkpoint="", manifest="")
    with pytest.raises(ValueError, match="labels at 75 Hz do not fall on frames at 50 Hz"):
        dataset(index, write_store(tmp_path / "wrong", wrong, [np.zeros(3, int)] * 4))
    with pytest.raises(ValueError, match="pad_frames=4 must be 1 with fit=crop"):
        CropConfig(fit="crop", pad_frames=4)


def stream(tmp_path: Path, *, workers: int, probability: float = 0.5) -> LayerDropStream:
    index, store = corpus(tmp_path)
    rules = PlanConfig(micro_batches_per_step=2, max_duration_s=3.0, num_buckets=2)
    plan = Plan([Source("train", index.durations_s)], rules, seed=3)
    inner = TrainStream(plan, dataset(index, store), config=LoaderConfig(num_workers=workers), ranks=init(device="cpu"))
    return LayerDropStream(inner, num_layers=12, probability=probability, seed=3)


def test_layers_are_dropped_by_step_and_equally_after_a_resume(tmp_path: Path) -> None:
    steps = []
    for step, _ in zip(stream(tmp_path, workers=1).steps(), range(12), strict=False):
        dropped = {batch.dropped_layers for batch in step.batches}
        assert len(step.batches) == 2 and len(dropped) == 1, "all micro-batches of a step agree"
        steps.append(step)
    drops = [step.batches[0].dropped_layers for step in steps]
    assert len(set(drops)) > 6 and 0.3 < np.mean([len(drop) for drop in drops]) / 12 < 0.7
    resumed = stream(tmp_path, workers=0).steps(steps[4].position)
    for expected, step in zip(steps[5:], resumed, strict=False):
        assert step.batches[0].dropped_layers == expected.batches[0].dropped_layers
        for one, other in zip(step.batches, expected.batches, strict=True):
            assert torch.equal(one.audio, other.audio) and torch.equal(one.masked_frames, other.masked_frames)


def test_ranks_share_the_layers_that_a_step_drops(tmp_path: Path) -> None:
    index, store = corpus(tmp_path)
    plan = Plan([Source("t", index.durations_s)], PlanConfig(micro_batches_per_step=2, max_duration_s=3.0), seed=3)
    found = []
    for rank in range(2):
        ranks = Ranks(rank, 0, 2, rank, 2, 0, 1, torch.device("cpu"))
        inner = TrainStream(plan, dataset(index, store), config=LoaderConfig(num_workers=0), ranks=ranks)
        steps = LayerDropStream(inner, num_layers=12, probability=0.5, seed=3).steps()
        found.append([step.batches[0].dropped_layers for step, _ in zip(steps, range(6), strict=False)])
    assert found[0] == found[1] and len(set(found[0])) > 3
