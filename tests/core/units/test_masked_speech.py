"""Batches of masked speech from real files: alignment to the sample, keys, crops, padding, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording

from core.config.load import load
from core.data.index import ManifestIndex, write_manifest
from core.data.layer_drop import LayerDropStream
from core.data.stream import LoaderConfig, TrainStream
from core.distributed import Ranks, init
from core.losses.masked_prediction import MaskedPredictionConfig, frame_accuracies, frames_to_predict, prediction_loss
from core.models.hubert.config import HubertConfig
from core.models.hubert.model import HubertPretraining
from core.samplers.budget import Shapes
from core.samplers.plan import Draw, Plan, PlanConfig, Source
from core.speech.masking import MaskConfig
from core.units.frame_labels import FrameGrid
from core.units.label_store import LabelCard, LabelStore, manifest_fingerprint, write_store
from core.units.masked_speech import CropConfig, MaskedBatch, MaskedSpeech
from recipes.hubert_iter1.assembly import Config
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics

DEMO = Path(__file__).parents[3] / "manifests" / "demo"
TINY_YAML = Path(__file__).parents[3] / "recipes" / "hubert_iter1" / "tiny.yaml"
TINY = HubertConfig(
    conv_layers=[[8, 10, 5], [8, 8, 8], [16, 8, 8]], dim=16, num_layers=2, num_heads=2, ffn_dim=32, position_kernel=8,
    position_groups=2, projection_dropout=0.0, attention_dropout=0.0, dropout=0.0, layer_drop=0.0, final_dim=8,
    num_classes=200,
)  # fmt: skip
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
        manifest=manifest_fingerprint(index),
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


SHAPES = Shapes(np.array([0.3, 0.9, 1.6]), np.array([5, 3, 2]))


@pytest.mark.parametrize(("rows", "num_rows", "length_s"), [
    ((), 5, 0.3), ((3,), 3, 0.9), ((1,), 3, 0.9), ((0, 1), 2, 1.6), ((2,), 2, 1.6),
])  # fmt: skip
def test_a_batch_is_filled_up_to_its_shape(
    rows: tuple[int, ...], num_rows: int, length_s: float, tmp_path: Path
) -> None:
    index, store = corpus(tmp_path)
    data = dataset(index, store)
    plain, filled = data[draws(*rows)], replace(data, shapes=SHAPES)[draws(*rows)]
    num_frames = GRID.num_frames(round(length_s * RATE))
    assert filled.audio.shape == (num_rows, GRID.num_samples(num_frames)) and filled.labels.shape[1] == num_frames
    assert filled.padded_length == (pytest.approx(filled.audio.numel() / RATE) if rows else 0)
    assert filled.audio.numel() / RATE <= length_s * num_rows
    for name in ("num_targets", "length", "sample_ids"):
        assert getattr(filled, name) == getattr(plain, name)
    assert torch.equal(filled.masked_frames, plain.masked_frames) and torch.equal(filled.targets, plain.targets)
    for name in ("num_samples", "num_frames"):
        values = getattr(filled, name)
        assert not values[len(rows) :].any() and torch.equal(values[: len(rows)], getattr(plain, name)[: len(rows)])
    size = [slice(0, length) for length in plain.audio.shape]
    assert torch.equal(filled.audio[size[0], size[1]], plain.audio) if rows else not filled.audio.any()
    assert float(filled.audio.abs().sum()) == pytest.approx(float(plain.audio.abs().sum()))


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.5])
def test_the_rows_that_fill_a_shape_change_neither_loss_nor_gradients(unmasked_weight: float, tmp_path: Path) -> None:
    """Not the accuracies either."""
    index, store = corpus(tmp_path)
    data = dataset(index, store)
    config = MaskedPredictionConfig(unmasked_weight=unmasked_weight)
    found = []
    for shapes in (None, SHAPES):
        batch = replace(data, shapes=shapes)[draws(1, 3)]
        torch.manual_seed(1)
        model, audio = HubertPretraining(TINY).double(), batch.audio.double()
        frames = frames_to_predict(batch.labels, batch.masked_frames, config)
        output = model(audio, batch.num_samples, masked_frames=batch.masked_frames, predicted_frames=frames)
        labels, num_frames, masked = batch.labels, batch.num_frames, batch.masked_frames
        loss = prediction_loss(output.logits, labels, num_frames, masked, output.penalties, config=config)
        loss.loss_sum.backward()
        every = torch.arange(labels.size(1)).expand_as(labels)
        logits = model(audio, batch.num_samples, masked_frames=masked, predicted_frames=every).logits
        accuracies = frame_accuracies(logits, labels, num_frames, masked)
        found.append((batch, loss, {name: p.grad for name, p in model.named_parameters()}, accuracies))
    (plain, loss, gradients, accuracies), (filled, other_loss, other_gradients, other_accuracies) = found
    assert len(filled.audio) > len(plain.audio) and filled.labels.size(1) > plain.labels.size(1)
    assert_close(other_loss.loss_sum, loss.loss_sum, rel=1e-12)
    assert other_loss.metrics.keys() == loss.metrics.keys() and accuracies == other_accuracies
    for name, pair in loss.metrics.items():
        assert [float(one) for one in other_loss.metrics[name]] == pytest.approx([float(one) for one in pair])
    for name, gradient in gradients.items():
        of = torch.cat([one.flatten() for one in gradients.values()])
        assert_close(other_gradients[name], gradient, rel=1e-10, of=of, name=name)


@pytest.mark.parametrize("corpus_name", ["english", "russian"])
def test_an_epoch_of_the_demo_corpus_has_few_shapes_within_the_budget(corpus_name: str, tmp_path: Path) -> None:
    """As tiny.yaml plans it, over two ranks: real audio, so that lengths in manifests and files may differ."""
    index = ManifestIndex.open(DEMO / f"{corpus_name}_train.jsonl")
    config = load(Config, TINY_YAML, ["plan.static_shapes=true", "data.channel=null"])
    known = [np.zeros(config.grid.num_frames(round(float(s) * RATE)), int) for s in index.durations_s]
    card = LabelCard(
        features="f",
        layer=1,
        num_clusters=9,
        rate_hz=50.0,
        codebook="",
        checkpoint="",
        manifest=manifest_fingerprint(index),
    )
    store = write_store(tmp_path / "labels", card, known)
    crop, mask, shapes = config.data.crop, config.data.mask, config.plan.shapes
    data = MaskedSpeech([index], [store], config.grid, crop, mask, seed=1, shapes=shapes)
    plan = Plan([Source("train", index.durations_s)], config.plan, seed=1)
    found, ids = set(), []
    for rank in range(2):
        ranks = Ranks(rank, 0, 2, rank, 2, 0, 1, torch.device("cpu"))
        for step in TrainStream(plan, data, config=LoaderConfig(num_workers=0), ranks=ranks).steps():
            for batch in step.batches:
                found.add(tuple(batch.audio.shape))
                ids += batch.sample_ids
                assert not batch.bad
            if step.position["plan"]["chunk"] == 1:
                break
    assert len(found) <= config.plan.num_buckets == 6
    assert all(rows * samples / RATE <= config.plan.max_duration_s for rows, samples in found)
    is_long_enough = index.durations_s >= np.float32(config.plan.min_cut_s)
    assert sorted(ids) == sorted(index.read(row).id for row in np.flatnonzero(is_long_enough))


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
        assert not batch.audio.any() and batch.sample_ids == [] and batch.length == 0
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
    with pytest.raises(ValueError, match=r"data.crop.fit=crop pads nothing"):
        replace(dataset(index, store, fit="crop"), shapes=SHAPES)


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
