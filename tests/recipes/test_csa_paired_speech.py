"""Pairs of real speech: the text is what is said in the audio, and a pair is the same wherever it is made."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.data.index import ManifestIndex, write_manifest
from core.data.pcm_cache import write_cache
from core.data.reading import read_cut
from core.data.stream import LoaderConfig, TrainStream, evaluation_batches
from core.distributed import init
from core.samplers.plan import Draw, PlanConfig
from core.text.normalization import normalize_transcript
from core.text.tokenization import TokenizerConfig
from core.text.words import words_of
from recipes.csa_stage1.paired_corpus import PairedCorpus, PairedCorpusConfig
from recipes.csa_stage1.paired_speech import PairBatch, PairConfig, text_key
from recipes.csa_stage1.word_crops import WordCropConfig
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics

DEMO = Path(__file__).parents[2] / "manifests" / "demo"
RATE = 16000
PLAN = PlanConfig(micro_batches_per_step=2, max_duration_s=24.0, max_cuts=8, constant_cuts=True, max_cut_s=3.0,
                  over_budget="crop", num_buckets=4)  # fmt: skip
ONE_PROCESS = LoaderConfig(num_workers=0)


def corpus(folder: Path, *, train: Path = DEMO / "russian_train.jsonl", **changes: Any) -> PairedCorpus:
    folder.mkdir(exist_ok=True)
    options: dict[str, Any] = {
        "train": str(train),
        "valid": str(DEMO / "english_dev.jsonl"),
        "test": str(DEMO / "russian_test.jsonl"),
        "tokenizer": TokenizerConfig(kind="bytes"),
        "pairs": PairConfig(normalize=False),
    }
    return PairedCorpus.open(PairedCorpusConfig(**options | changes), folder, ranks=init(device="cpu"))


def draws(*rows: int, epoch: int = 0) -> list[Draw]:
    return [Draw(0, epoch, row) for row in rows]


def text_of(batch: PairBatch, row: int) -> str:
    return bytes(one - 1 for one in batch.token_ids[row, : batch.num_tokens[row]].tolist()).decode()


def same(one: PairBatch, other: PairBatch) -> bool:
    names = ("audio", "num_samples", "token_ids", "num_tokens", "text_keys")
    return one.sample_ids == other.sample_ids and all(
        getattr(one, name).shape == getattr(other, name).shape
        and bool((getattr(one, name) == getattr(other, name)).all())
        for name in names
    )


def test_the_text_is_what_is_said_in_the_samples(tmp_path: Path) -> None:
    made = corpus(tmp_path)
    index = made.sources[0].manifest
    data = made.training_set(seed=1)
    for epoch in range(3):
        batch = data[draws(*range(20), epoch=epoch)]
        assert batch.num_targets == 20 and not batch.bad
        for row in range(20):
            whole = read_cut(index.read(row), sample_rate_hz=RATE).samples
            crop = batch.audio[row, : batch.num_samples[row]].numpy()
            starts = np.flatnonzero(np.isclose(whole[: len(whole) - len(crop) + 1], crop[0], atol=1e-7))
            (start,) = [one for one in starts if np.allclose(whole[one : one + len(crop)], crop, atol=1e-6)]
            words = words_of(index.record(row))
            middles = (words.starts_s + words.ends_s) / 2 * RATE
            inside = [text for text, at in zip(words.texts, middles, strict=True) if start <= at < start + len(crop)]
            assert text_of(batch, row) == batch.texts[row] == " ".join(inside)
            assert len(crop) <= 3 * RATE + 1 and not batch.audio[row, len(crop) :].any()


def test_a_pair_is_the_same_in_any_batch_worker_and_after_any_resume(tmp_path: Path) -> None:
    made = corpus(tmp_path)
    data = made.training_set(seed=1)
    batch = data[draws(3, 7, 9)]
    assert same(batch, made.training_set(seed=1)[draws(3, 7, 9)])
    alone = data[draws(7)]
    assert text_of(alone, 0) == text_of(batch, 1) and alone.text_keys[0] == batch.text_keys[1]
    assert torch.equal(alone.audio[0], batch.audio[1, : alone.audio.shape[1]])
    others = [
        data[draws(3, 7, 9, epoch=1)],
        made.training_set(seed=2)[draws(3, 7, 9)],
        replace(data, segment=1)[draws(3, 7, 9)],
    ]
    assert not any(same(batch, other) for other in others)

    def steps(num_workers: int, position: Any = None) -> list[Any]:
        plan = made.training_plan(PLAN, seed=1)
        config = LoaderConfig(num_workers=num_workers)
        stream = TrainStream(plan, made.training_set(seed=1), config=config, ranks=init(device="cpu"))
        return list(islice(stream.steps(position), 4))

    here, there = steps(0), steps(2)
    for one, other in zip(here, there, strict=True):
        assert all(same(a, b) and a.num_targets == 8 for a, b in zip(one.batches, other.batches, strict=True))
    again = steps(0, here[1].position)
    assert all(same(a, b) for a, b in zip(again[0].batches, here[2].batches, strict=True))


def test_a_blend_is_validated_with_each_clip_once(tmp_path: Path) -> None:
    """In batches of crops whose lengths the plan knows, of each source of the blend."""
    entries = [
        f"{{manifest: {DEMO}/{name}_dev.jsonl, weight: {weight}}}" for name, weight in (("english", 3), ("russian", 1))
    ]
    (tmp_path / "both.yaml").write_text(f"sources: [{', '.join(entries)}]\n")
    made = corpus(tmp_path / "run", valid=str(tmp_path / "both.yaml"), evaluate="crop")
    plan, data = made.evaluation_plan("valid", PLAN, seed=1), made.evaluation_set("valid", seed=1)
    batches = [data[one] for one in plan.batches(0, 1)]
    indexes = [source.manifest for source in made.valid]
    assert sorted(
        one for batch in batches for one in [*batch.sample_ids, *(bad.sample_id for bad in batch.bad)]
    ) == sorted(cut.id for index in indexes for cut in index.cuts())
    meant_s = [data._drawn(one)[0] for one in plan.batches(0, 1)]
    for one, lengths_s in zip(plan.batches(0, 1), meant_s, strict=True):
        whole = [
            min(length, indexes[draw.source].durations_s[draw.row]) for draw, length in zip(one, lengths_s, strict=True)
        ]
        assert whole == sorted(whole, reverse=True)


def test_batches_are_of_crops_alike_in_length(tmp_path: Path) -> None:
    made = corpus(tmp_path)

    def useful(num_buckets: int) -> float:
        plan = made.training_plan(replace(PLAN, num_buckets=num_buckets, max_cuts=4), seed=1)
        data = made.training_set(seed=1)
        batches = [data[draws] for step in islice(plan.steps(), 12) for draws in step.micro_batches]
        return sum(batch.length for batch in batches) / sum(batch.padded_length for batch in batches)

    assert useful(12) > 0.9 > 0.8 > useful(1)


def test_whole_clips_for_evaluation_and_the_same_crops_every_time(tmp_path: Path) -> None:
    whole = corpus(tmp_path)
    plan = replace(PLAN, max_duration_s=60.0)

    def batches(made: PairedCorpus) -> list[PairBatch]:
        data, ranks = made.evaluation_set("test", seed=5), init(device="cpu")
        return list(
            evaluation_batches(made.evaluation_plan("test", plan, seed=5), data, config=ONE_PROCESS, ranks=ranks)
        )

    found = {name: row for batch in batches(whole) for row, name in zip(range(99), batch.sample_ids, strict=False)}
    assert len(found) == len(whole.test)
    for batch in batches(whole):
        for row, sample_id in enumerate(batch.sample_ids):
            cut = next(cut for cut in whole.test.cuts() if cut.id == sample_id)
            assert int(batch.num_samples[row]) == cut.num_samples and batch.texts[row] == cut.supervisions[0].text
    cropped = corpus(tmp_path, evaluate="crop")
    first, second = batches(cropped), batches(cropped)
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert sum(batch.num_targets for batch in first) == len(whole.test)
    assert max(int(batch.num_samples.max()) for batch in first) <= 3 * RATE + 1


def test_the_cache_changes_nothing_but_the_time(tmp_path: Path) -> None:
    index = ManifestIndex.open(DEMO / "russian_train.jsonl")
    import soundfile

    cuts = []
    for row in range(4):
        cut = index.read(row)
        soundfile.write(tmp_path / f"{row}.flac", read_cut(cut, sample_rate_hz=RATE).samples, RATE, subtype="PCM_16")
        cut.recording.sources[0].source = str(tmp_path / f"{row}.flac")
        cuts.append(cut)
    write_manifest(cuts, tmp_path / "flac.jsonl")
    index = ManifestIndex.open(tmp_path / "flac.jsonl")
    write_cache(index.manifest, [read_cut(cut, sample_rate_hz=RATE).samples for cut in cuts], sample_rate_hz=RATE)
    files = corpus(tmp_path, train=index.manifest).training_set(seed=1)
    other = {"valid": str(index.manifest), "test": str(index.manifest), "pcm_cache": True}
    cached = corpus(tmp_path, train=index.manifest, **other).training_set(seed=1)
    for epoch in range(5):
        assert same(files[draws(0, 1, 2, 3, epoch=epoch)], cached[draws(0, 1, 2, 3, epoch=epoch)])


def test_rows_are_normalized_as_wav2vec_wants_them(tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    raw, data = (corpus(tmp_path, pairs=PairConfig(normalize=on)).training_set(seed=1) for on in (False, True))
    plain, batch = raw[draws(0, 1)], data[draws(0, 1)]
    rows = [plain.audio[row, : plain.num_samples[row]].numpy() for row in range(2)]
    expected = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)(
        rows, sampling_rate=RATE, padding=True, return_tensors="np"
    )
    assert_close(batch.audio, expected["input_values"])


def test_spoken_text_and_keys(tmp_path: Path) -> None:
    spoken = corpus(
        tmp_path, train=DEMO / "english_train.jsonl", crop=None,
        tokenizer=TokenizerConfig(kind="characters"), pairs=PairConfig(text="spoken"),
    )  # fmt: skip
    batch = spoken.training_set(seed=1)[draws(*range(10))]
    written = [cut.supervisions[0].text for cut in islice(spoken.sources[0].manifest.cuts(), 10)]
    assert batch.texts == [normalize_transcript(text) for text in written]
    assert (tmp_path / "vocabulary.txt").exists() and spoken.tokenizer.vocab_size < 40
    assert batch.text_keys.tolist() == [text_key(text) for text in batch.texts]
    keys = corpus(tmp_path, train=DEMO / "english_train.jsonl", crop=None).training_set(seed=1)[draws(*range(10))]
    assert torch.equal(keys.text_keys, batch.text_keys), "however it is written"
    assert text_key("a") != text_key("b") and batch.text_keys.dtype == torch.int64


def _with(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    record = json.loads(json.dumps(record))
    for key, value in changes.items():
        if key == "text":
            record["supervisions"][0]["text"] = value
        elif key == "path":
            record["recording"]["sources"][0]["source"] = value
        else:
            record[key] = value
    return record


def test_what_cannot_be_used_is_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    first = ManifestIndex.open(DEMO / "english_train.jsonl").record(1)
    records = [
        first, _with(first, id="gone", path=str(tmp_path / "gone.ogg")), _with(first, id="mute", text="  "),
        _with(first, id="none", supervisions=[]), _with(first, id="dots", text="..."),
        _with(first, id="long", text="x" * 101),
    ]  # fmt: skip
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"tokenizer": TokenizerConfig(kind="bytes", max_tokens=100), "pairs": PairConfig(text="spoken")}
    data = corpus(tmp_path, train=manifest, crop=None, **options).training_set(seed=1)
    batch = data[draws(*range(6))]
    reasons = {bad.sample_id: bad.reason for bad in batch.bad}
    assert batch.sample_ids == [first["id"]] and batch.num_targets == 1
    assert reasons["gone"] == "no such file" and reasons["mute"] == reasons["none"] == "no text"
    assert "no words are spoken" in reasons["dots"] and "101 tokens, 100 are allowed" in reasons["long"]
    for empty in (data[draws(1)], data[[]]):
        assert empty.num_targets == 0 and empty.audio.shape == (1, RATE) and not empty.audio.any()
        assert empty.num_tokens.tolist() == [1] and empty.sample_ids == [] and empty.length == 0


def test_a_recording_is_read_in_parts_and_channels_and_rates(tmp_path: Path) -> None:
    """A segment of a longer stereo file at 8 kHz."""
    import soundfile
    from lhotse import MonoCut, Recording, SupervisionSegment

    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (40000, 2))
    soundfile.write(tmp_path / "two.flac", audio, 8000)
    recording = Recording.from_file(tmp_path / "two.flac")
    texts = [SupervisionSegment("s", "two", 0.0, 2.0, text="one two three four")]
    write_manifest([MonoCut("s", 1.0, 2.0, 1, texts, recording=recording)], tmp_path / "two.jsonl")
    made = corpus(tmp_path, train=tmp_path / "two.jsonl", crop=None).training_set(seed=1)
    cut = made.indexes[0].read(0)
    whole = made[draws(0)]
    assert torch.equal(whole.audio[0], torch.from_numpy(read_cut(cut, sample_rate_hz=RATE).samples))
    part = corpus(tmp_path, train=tmp_path / "two.jsonl", crop=WordCropConfig(max_s=1.5)).training_set(seed=4)[draws(0)]
    length = int(part.num_samples[0])
    assert 0 < length < 32000 and len(part.texts[0].split()) < 4
    windows = whole.audio[0].unfold(0, length, 1)
    assert (windows - part.audio[0]).abs().amax(dim=1).min() < 1e-6


def test_contradicting_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs.text=written must be spoken"):
        corpus(tmp_path, tokenizer=TokenizerConfig(kind="characters"))
    with pytest.raises(ValueError, match="evaluate=crop needs crop"):
        corpus(tmp_path, crop=None, evaluate="crop")
    with pytest.raises(ValueError, match="no cache of samples"):
        corpus(tmp_path, pcm_cache=True).training_set(seed=1)
