"""Examples of a model that hears waveforms: spelling, what counts, and masks that follow from the draws alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment

from core.data.index import write_manifest
from core.distributed import Ranks
from core.models.hubert.config import HubertEncoderConfig
from core.recognition.waveform_asr import MaskedUtterances, WaveformAsrConfig, WaveformCorpus
from core.samplers.plan import Draw, Plan, PlanConfig, Source
from core.speech.masking import MaskConfig

RATE = 16_000
ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))
LENGTHS = HubertEncoderConfig().output_lengths
CLIPS = {"one": (32_000, "ONE, two"), "two": (20_000, "two"), "long": (48_000, "one two one two"),
         "hasty": (1_000, "two one"), "odd": (20_000, "\u00f1o"), "short": (300, "one")}  # fmt: skip
DIM = 64


def cut(folder: Path, name: str) -> MonoCut:
    length, text = CLIPS[name]
    samples = np.random.default_rng(len(name)).normal(0.05, 0.1, length).astype(np.float32)
    soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    recording = Recording.from_file(folder / f"{name}.wav", recording_id=name)
    spoken = SupervisionSegment(name, name, 0.0, recording.duration, text=text, language="Spanish")
    return MonoCut(name, 0.0, recording.duration, 0, [spoken], recording=recording)


def corpus(folder: Path, *, names: tuple[str, ...] = tuple(CLIPS), **data: Any) -> WaveformCorpus:
    write_manifest([cut(folder, name) for name in names], folder / "train.jsonl")
    write_manifest([cut(folder, name) for name in ("two", "odd")], folder / "dev.jsonl")
    settings = {"symbols": " enotw", "time_mask": MaskConfig(probability=0.65, length=10),
                "channel_mask": MaskConfig(probability=0.5, length=16, min_spans=1), **data}  # fmt: skip
    paths = {
        "train": str(folder / "train.jsonl"),
        "valid": str(folder / "dev.jsonl"),
        "test": str(folder / "dev.jsonl"),
    }
    return WaveformCorpus.open(WaveformAsrConfig(**paths, **settings), folder, ranks=ALONE)


def training_set(made: WaveformCorpus, *, seed: int = 1) -> MaskedUtterances:
    plan = Plan([Source("train", made.sources[0].manifest.durations_s)],
                PlanConfig(micro_batches_per_step=1, max_duration_s=10.0), seed=seed)  # fmt: skip
    return made.training_set(plan, output_lengths=LENGTHS, num_channels=DIM, seed=seed)


def draws(*rows: int, epoch: int = 0) -> list[Draw]:
    return [Draw(0, epoch, row) for row in rows]


def test_utterances_are_targets_and_bad_ones_are_said(tmp_path: Path) -> None:
    batch = training_set(corpus(tmp_path))[draws(0, 1, 2, 3, 4, 5)]
    assert batch.sample_ids == ["one", "two", "long", "hasty"]
    assert batch.num_targets == 3, "2 frames cannot spell 7 characters"
    assert [bad.reason.split(" in ")[0] for bad in batch.bad] == [
        "1 characters outside the vocabulary", "shorter than one frame of the model"
    ]  # fmt: skip
    assert batch.inputs.shape == (4, 48_000) and batch.input_lengths.tolist() == [32_000, 20_000, 48_000, 1_000]
    assert batch.targets[0, :7].tolist() == [4, 3, 2, 1, 5, 6, 4], "' enotw' is spelled from 1 on, the blank is 0"


def test_masks_cover_frames_and_channels_and_follow_from_the_draws(tmp_path: Path) -> None:
    dataset = training_set(corpus(tmp_path))
    batch = dataset[draws(0, 1, 2)]
    num_frames = LENGTHS(batch.input_lengths)
    assert batch.is_masked.shape == (3, num_frames.max()) and batch.is_masked_channel.shape == (3, DIM)
    for row, length in enumerate(num_frames.tolist()):
        assert not batch.is_masked[row, length:].any()
    assert len({tuple(mask.sum(1).tolist()) for mask in (batch.is_masked,)}) == 1
    assert set(batch.is_masked.sum(1).tolist()) == {int(batch.is_masked[0].sum())}, "the same number in every row"
    assert 0.2 < batch.is_masked[1].float().sum() / num_frames[1] < 0.65
    assert 0.15 < batch.is_masked_channel.float().mean() < 0.5
    again, other = dataset[draws(0, 1, 2)], dataset[draws(0, 1, 2, epoch=1)]
    for name in ("is_masked", "is_masked_channel"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
        assert not torch.equal(getattr(other, name), getattr(batch, name))
        assert not torch.equal(
            getattr(training_set(corpus(tmp_path), seed=2)[draws(0, 1, 2)], name), getattr(batch, name)
        )


def test_without_masks_and_without_clips_nothing_is_masked_but_a_mask_is_there(tmp_path: Path) -> None:
    bare = training_set(corpus(tmp_path, time_mask=None, channel_mask=None))
    for batch, shape in ((bare[draws(0, 1)], (2, LENGTHS(32_000))), (training_set(corpus(tmp_path))[[]], (1, 4))):
        assert batch.is_masked.shape == shape and not batch.is_masked.any() and not batch.is_masked_channel.any()
    assert batch.num_targets == 0 and batch.sample_ids == []


def test_evaluation_hears_everything_and_leaves_unknown_letters_out(tmp_path: Path) -> None:
    made = corpus(tmp_path)
    batch = made.evaluation_set("valid", output_lengths=LENGTHS)[draws(0, 1)]
    assert batch.sample_ids == ["two", "odd"] and not hasattr(batch, "is_masked")
    assert batch.target_lengths.tolist() == [3, 1]
    assert made.references == {"two": "two", "odd": "\u00f1o"}


def test_normalized_audio_has_mean_0_and_variance_1(tmp_path: Path) -> None:
    batch = training_set(corpus(tmp_path, normalize=True))[draws(0, 1)]
    for row, length in enumerate(batch.input_lengths.tolist()):
        heard = batch.inputs[row, :length].double()
        assert float(heard.mean()) == pytest.approx(0, abs=1e-4) and float(heard.var()) == pytest.approx(1, rel=1e-2)
        assert not batch.inputs[row, length:].any()


def test_symbols_are_those_given_or_those_of_the_training_texts(tmp_path: Path) -> None:
    for folder, symbols, expected in (("given", " enotwz", " enotwz"), ("learned", None, " enotw")):
        (tmp_path / folder).mkdir()
        found = corpus(tmp_path / folder, names=("one", "two"), symbols=symbols)
        assert "".join(found.vocabulary.symbols) == expected
    with pytest.raises(ValueError, match="must have the space"):
        corpus(tmp_path, symbols="abc")
