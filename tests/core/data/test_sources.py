"""A blend is drawn by its weights, and a run goes on with other data as a new segment, when that is accepted."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from core.config.schema import ConfigError
from core.data.batch import Sample, SpeechDataset
from core.data.reading import Reading
from core.data.sources import TrainingSource, open_sources
from core.data.stream import LoaderConfig, TrainStream
from core.distributed import Ranks
from core.samplers.plan import Plan, PlanConfig

DEMO = Path(__file__).parents[3] / "manifests" / "demo"
RULES = PlanConfig(micro_batches_per_step=1, max_duration_s=60.0, max_cuts=4, num_buckets=1, over_budget="skip")
ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))


def blend(folder: Path, *entries: str) -> Path:
    path = folder / "blend.yaml"
    path.write_text("sources:\n" + "".join(f"  - {{{entry}}}\n" for entry in entries))
    return path


def sample(reading: Reading, rng: np.random.Generator | None) -> Sample:
    assert rng is not None
    value = torch.full((2, 1), float(rng.random()))
    return Sample(reading.sample_id, value, torch.ones(1, dtype=torch.int64), num_targets=1, audio_s=reading.duration_s)


def stream(sources: list[TrainingSource], *, accept_data: bool = False) -> TrainStream:
    plan = Plan([source.planned for source in sources], RULES, seed=5)
    dummy = Sample("", torch.zeros(2, 1), torch.zeros(0, dtype=torch.int64), num_targets=0, audio_s=0.0)
    dataset = SpeechDataset([source.manifest for source in sources], sample, dummy, 16000, seed=5)
    return TrainStream(plan, dataset, config=LoaderConfig(num_workers=0), ranks=ALONE, accept_data=accept_data)


def test_a_blend_names_its_manifests_and_is_drawn_by_weight(tmp_path: Path) -> None:
    english, russian = f"manifest: {DEMO}/english_dev.jsonl", f"manifest: {DEMO}/russian_dev.jsonl"
    sources = open_sources(blend(tmp_path, f"{english}, weight: 3", f"{russian}, weight: 1, name: ru"))
    assert [(source.name, source.weight) for source in sources] == [("english_dev", 3), ("ru", 1)]
    drawn = Counter(
        one.split("-")[0] for step in islice(stream(sources).steps(), 10) for one in step.batches[0].sample_ids
    )
    assert drawn.total() == 40
    assert abs(drawn["english"] - 30) <= 3  # a chunk is shuffled as a whole, so the first steps have nearly their share


def test_one_manifest_is_one_source() -> None:
    [source] = open_sources(DEMO / "english_dev.jsonl")
    assert (source.name, source.weight, len(source.manifest)) == ("english_dev", 1, 42)


def test_mistakes_of_a_blend_are_reported_with_their_place(tmp_path: Path) -> None:
    path = blend(tmp_path, "manifst: a.jsonl", "manifest: b.jsonl, weight: 0")
    with pytest.raises(ConfigError) as error:
        open_sources(path)
    assert [problem for problem in error.value.problems if "blend.yaml:2" in problem and "manifest" in problem]
    assert [problem for problem in error.value.problems if "weight=0 must be" in problem]
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such manifest"):
        open_sources(blend(tmp_path, "manifest: nowhere.jsonl"))
    (tmp_path / "empty.yaml").write_text("sources: []\n")
    with pytest.raises(ValueError, match="the list is empty"):
        open_sources(tmp_path / "empty.yaml")


def test_changed_data_is_refused_unless_accepted_and_then_begins_a_segment() -> None:
    first, second = open_sources(DEMO / "english_overfit.jsonl"), open_sources(DEMO / "english_dev.jsonl")
    last = list(islice(stream(first).steps(), 2))[-1].position
    with pytest.raises(ValueError, match=r"run\.accept_data=true"):
        next(stream(second).steps(last))
    after = next(stream(second, accept_data=True).steps(last))
    assert after.position["plan"] == {"segment": 1, "chunk": 0, "offset": 1}
    # The next link has the same command line: nothing changed since, so the segment goes on.
    again = next(stream(second, accept_data=True).steps(after.position))
    assert again.position["plan"] == {"segment": 1, "chunk": 0, "offset": 2}


def test_a_segment_has_randomness_of_its_own() -> None:
    [source] = open_sources(DEMO / "english_overfit.jsonl")
    dummy = Sample("", torch.zeros(2, 1), torch.zeros(0, dtype=torch.int64), num_targets=0, audio_s=0.0)
    dataset = SpeechDataset([source.manifest], sample, dummy, 16000, seed=5)
    draws = next(Plan([source.planned], RULES, seed=5).steps()).micro_batches[0]
    assert torch.equal(dataset[draws].inputs, dataset[draws].inputs)
    assert not torch.equal(dataset[draws].inputs, replace(dataset, segment=1)[draws].inputs)
