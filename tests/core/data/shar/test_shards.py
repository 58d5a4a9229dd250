"""Streaming Shar: what is read is what was written, each reader its own part, each link another order, faults said."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from core.data.batch import Sample
from core.data.index import ManifestIndex, write_manifest
from core.data.reading import BadSample, Reading, read_cut
from core.data.shar.shards import Shar
from core.data.shar.stream import SharStream, check_shares, link_seed
from core.data.stream import BatchedStep, LoaderConfig
from core.distributed import Ranks
from core.recognition.asr import AsrConfig
from core.rundir.environment import ENV_LINK_SEED
from core.samplers.plan import PlanConfig
from manifests import shar as make_shar
from tests.ranks import run_on_ranks
from tests.recipes.runs import demo_cuts

NUM_CUTS, SHARD_SIZE = 22, 4
PLAN = PlanConfig(micro_batches_per_step=4, max_duration_s=4.0, max_cuts=3, num_buckets=3)
ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "part.jsonl"
    write_manifest(demo_cuts("train", NUM_CUTS), path)
    return path


@pytest.fixture(scope="module")
def directory(manifest: Path) -> Path:
    make_shar.write_shar(manifest, manifest.parent / "shar", shard_size=SHARD_SIZE)
    return manifest.parent / "shar"


def make_sample(reading: Reading, rng: np.random.Generator | None) -> Sample:
    assert rng is not None
    if "bad" in reading.sample_id:
        raise reading.bad("as named")
    noise = torch.tensor([rng.integers(2**40)])
    return Sample(reading.sample_id, torch.from_numpy(reading.samples), noise, 1, reading.duration_s)


def dummy() -> Sample:
    return Sample("", torch.zeros(8), torch.zeros(0, dtype=torch.int64), 0, 0.0)


def stream(directory: Path, *, seed: int = 1, ranks: Ranks = ALONE, workers: int = 0, **options: Any) -> SharStream:
    plan, accept_data = options.get("plan", PLAN), options.get("accept_data", False)
    return SharStream(
        Shar.open(directory), make_sample, plan, dummy=dummy(), sample_rate_hz=16_000,
        config=LoaderConfig(num_workers=workers), ranks=ranks, seed=seed, accept_data=accept_data,
    )  # fmt: skip


def ids(steps: Iterator[BatchedStep], num: int) -> list[list[list[str]]]:
    return [[batch.sample_ids for batch in step.batches] for step in islice(steps, num)]


def flat(steps: list[list[list[str]]]) -> list[str]:
    return [one for step in steps for batch in step for one in batch]


def dp_rank(rank: int, size: int) -> Ranks:
    """One of several dp ranks, without the others: nothing is compared."""
    return replace(ALONE, dp_rank=rank, dp_size=size)


def test_the_audio_is_the_manifests_to_16_bits(manifest: Path, directory: Path) -> None:
    expected = {cut.id: cut for cut in ManifestIndex.open(manifest).cuts()}
    read = [cut for shard in Shar.open(directory).shards for cut in shard.read()]
    assert [cut.id for cut in read] == list(expected) == [cut.id for cut in Shar.open(directory).cuts()]
    for cut in read:
        assert not isinstance(cut, BadSample)
        found, wanted = (read_cut(one, sample_rate_hz=16_000) for one in (cut, expected[cut.id]))
        assert found.text() == wanted.text() and found.path.endswith(".jsonl.gz")
        np.testing.assert_allclose(found.samples, np.clip(wanted.samples, -1, 1), atol=1.01 / 2**15)
    assert len(list(Shar.open(directory).spread(7))) == 6  # one of each shard


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_follows_from_the_link_seed_alone(directory: Path, workers: int) -> None:
    first, again = (list(islice(stream(directory, workers=workers).steps(), 6)) for _ in range(2))
    assert ids(iter(first), 6) == ids(iter(again), 6)
    assert all(torch.equal(a.batches[0].targets, b.batches[0].targets) for a, b in zip(first, again, strict=True))
    assert ids(iter(first), 6) != ids(stream(directory, workers=workers, seed=2).steps(), 6)
    other_workers = [set(flat([[batch.sample_ids for batch in step.batches[w::2]] for step in first])) for w in (0, 1)]
    assert other_workers[0].isdisjoint(other_workers[1]) == (workers == 2)


def test_every_cut_comes_and_micro_batches_keep_the_limits(directory: Path) -> None:
    steps = list(islice(stream(directory).steps(), 20))
    counts = {one: flat(ids(iter(steps), 20)).count(one) for one in flat(ids(iter(steps), 20))}
    assert len(counts) == NUM_CUTS and max(counts.values()) <= 3 * min(counts.values())
    for batch in (batch for step in steps for batch in step.batches):
        assert len(set(batch.sample_ids)) == len(batch.sample_ids) <= 3
        assert batch.padded_length <= 4.0 + 1e-3
    noises = [int(one) for step in steps for batch in step.batches for one in batch.targets.flatten()]
    assert len(set(noises)) == len(noises)
    assert steps[-1].epoch == pytest.approx(sum(counts.values()) / NUM_CUTS)


def test_a_buffer_packs_like_lengths(directory: Path) -> None:
    plan = replace(PLAN, num_buckets=8)
    batches = [batch for step in islice(stream(directory, plan=plan).steps(), 30) for batch in step.batches]
    padding = 1 - sum(one.length for one in batches) / sum(one.padded_length for one in batches)
    lengths = Shar.open(directory).durations_s
    shuffled = np.random.default_rng(0).choice(lengths, (1000, 3))
    assert padding < 0.7 * (1 - shuffled.mean() / shuffled.max(axis=1).mean())


def test_dp_ranks_and_workers_read_disjoint_shards_and_miss_none(directory: Path) -> None:
    parts = [set(flat(ids(stream(directory, ranks=dp_rank(r, 2), workers=1).steps(), 12))) for r in (0, 1)]
    assert parts[0].isdisjoint(parts[1]) and len(parts[0] | parts[1]) == NUM_CUTS
    other_seed = set(flat(ids(stream(directory, ranks=dp_rank(0, 2), seed=5).steps(), 12)))
    assert other_seed != parts[0]  # dealt out anew


def test_limits_skip_as_an_exact_plan_does(directory: Path) -> None:
    lengths = Shar.open(directory).durations_s
    longest, shortest = float(np.quantile(lengths, 0.7)), float(np.quantile(lengths, 0.2))
    plan = replace(PLAN, max_cut_s=longest, min_cut_s=shortest, over_budget="skip")
    data = stream(directory, plan=plan)
    wanted = int(((lengths >= np.float32(shortest)) & (lengths <= np.float32(longest))).sum())
    assert len(set(flat(ids(data.steps(), 15)))) == wanted == data.num_examples < NUM_CUTS
    assert re.search(r"shorter than .* skipped; \d+ longer than .* skipped", data.describe()[0])
    with pytest.raises(ValueError, match="over budget"):
        stream(directory, plan=replace(plan, over_budget="error"))


def test_a_resume_begins_another_order_and_a_repeated_link_the_same(directory: Path) -> None:
    first = list(islice(stream(directory).steps(), 3))
    position = first[-1].position
    assert (position["order"], position["link_seed"], position["steps"]) == ("randomized", 1, 3)
    same_seed, again = (ids(stream(directory).steps(position), 3) for _ in range(2))
    assert same_seed == again != ids(iter(first), 3)  # requeued: not the first examples once more
    assert ids(stream(directory, seed=2).steps(position), 3) != same_seed
    assert next(stream(directory).steps(position)).epoch > first[-1].epoch


def test_another_order_or_other_data_is_refused_unless_accepted(directory: Path) -> None:
    exact = {"plan": {"segment": 2, "chunk": 1, "offset": 7}, "fingerprint": "of manifests"}
    with pytest.raises(ValueError, match=r"trained on data\.order=exact so far.*run\.accept_data=true"):
        next(stream(directory).steps(exact))
    with pytest.raises(ValueError, match="trained on other data so far"):
        next(stream(directory).steps({**exact, "order": "randomized"}))
    after = next(stream(directory, accept_data=True).steps(exact)).position
    assert after["plan"]["segment"] == 2 and after["steps"] == 1


def test_link_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_LINK_SEED, raising=False)
    assert len({link_seed(run, link) for run in (1, 2) for link in (1, 2)}) == 4
    monkeypatch.setenv(ENV_LINK_SEED, "77")
    assert link_seed(1, 1) == link_seed(2, 5) == 77


def _read(ranks: Ranks, directory: Path, seeds: list[int], dp_ranks: list[int]) -> list[str] | str:
    """The ids of two steps on this rank, or what the check says; seeds and dp ranks may be wrong on purpose."""
    mine = stream(directory, seed=seeds[ranks.rank], ranks=replace(ranks, dp_rank=dp_ranks[ranks.rank]))
    try:
        return flat(ids(mine.steps(), 2))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("tp_size", "seeds", "dp_ranks", "expected"),
    [
        (1, [3, 3], [0, 1], None),
        (2, [3, 3], [0, 0], None),
        (1, [3, 3], [0, 0], "ranks 0 and 1 are different dp ranks"),
        (2, [3, 3], [0, 1], "ranks 0 and 1 are tp ranks of one group"),
        (1, [3, 4], [0, 1], r"the seed of the link must be the same .* ranks that differ from rank 0: \[1\]"),
    ],
)
def test_two_ranks(directory: Path, tp_size: int, seeds: list[int], dp_ranks: list[int], expected: str | None) -> None:
    one, other = run_on_ranks(_read, 2, directory, seeds, dp_ranks, tp_size=tp_size)
    if expected is not None:
        assert re.search(expected, one) and one == other
    elif tp_size == 2:
        assert one == other and len(one) > 4
    else:
        assert set(one).isdisjoint(other) and one and other


def test_shares_of_four_ranks() -> None:
    def check(rows: list[list[str]]) -> None:
        ranks = replace(ALONE, world_size=4, dp_size=2, tp_size=2)
        object.__setattr__(ranks, "gather", lambda item: rows)
        check_shares(ranks, rows[0], step=1)

    check([["a", "b"], ["a", "b"], ["c"], ["c"]])
    with pytest.raises(ValueError, match=r"ranks 2 and 3 are tp ranks.*'c' where the other reads 'nothing'"):
        check([["a"], ["a"], ["c"], []])
    with pytest.raises(ValueError, match=r"ranks 0 and 2 are different dp ranks.*both read 'a'"):
        check([["a"], ["a"], ["c", "a"], ["c", "a"]])


def test_a_damaged_shard_is_reported_and_the_others_are_read(manifest: Path, tmp_path: Path) -> None:
    make_shar.write_shar(manifest, tmp_path / "shar", shard_size=SHARD_SIZE)
    audio = tmp_path / "shar" / "recording.000002.tar"
    audio.write_bytes(audio.read_bytes()[: audio.stat().st_size // 2])
    steps = list(islice(stream(tmp_path / "shar").steps(), 20))
    bad = {one.sample_id: one.reason for step in steps for batch in step.batches for one in batch.bad}
    assert bad.keys() == {"recording.000002.tar"}
    assert re.match(r"damaged: [123] of its 4 cuts can be read", bad["recording.000002.tar"])
    assert NUM_CUTS - 4 < len(set(flat(ids(iter(steps), 20)))) < NUM_CUTS
    for audio in (tmp_path / "shar").glob("*.tar"):
        audio.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no cut .* can be read from cuts.*damaged: 0 of its [24]"):
        next(stream(tmp_path / "shar").steps())


def test_wrong_directories_and_too_many_readers(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no Shar directory.*python -m manifests\.shar"):
        Shar.open(tmp_path)
    with pytest.raises(ValueError, match=r"6 shards for 8 readers .*set loader\.num_workers to at most 3"):
        stream(directory, ranks=dp_rank(0, 2), workers=4)
    with pytest.raises(ValueError, match=r"6 shards for 8 readers .*make smaller shards"):
        stream(directory, ranks=dp_rank(0, 8), plan=replace(PLAN, micro_batches_per_step=8))
    with pytest.raises(ValueError, match="over_budget=crop"):
        stream(directory, plan=replace(PLAN, over_budget="crop"))
    (tmp_path / "cuts.000000.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"its audio recording\.000000\.tar is missing"):
        Shar.open(tmp_path)
    (tmp_path / "recording.000000.tar").touch()
    with pytest.raises(ValueError, match=r"cuts\.000000\.jsonl\.gz: damaged"):
        Shar.open(tmp_path)


def test_config_refuses_what_does_not_belong_together(manifest: Path, directory: Path) -> None:
    splits = {"valid": str(manifest), "test": str(manifest)}
    AsrConfig(train=str(directory), order="randomized", **splits)
    with pytest.raises((ValueError, ValidationError), match="is a manifest or a blend, but order=randomized"):
        AsrConfig(train=str(manifest), order="randomized", **splits)
    with pytest.raises((ValueError, ValidationError), match="is a directory, but order=exact"):
        AsrConfig(train=str(directory), **splits)


def test_the_command_writes_whole_and_leaves_out_what_cannot_be_read(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cuts = demo_cuts("train", 5)
    cuts[3].recording.sources[0].source = str(tmp_path / "missing.flac")
    write_manifest(cuts, tmp_path / "five.jsonl")
    command = [str(tmp_path / "five.jsonl"), str(tmp_path / "out"), "--shard-size", "2", "--shuffle", "1"]
    make_shar.main(command)
    said = " ".join(capsys.readouterr().out.split())
    assert "left out" in said and "4 utterances in 2 shards, 1 that cannot be read left out" in said
    found = [cut.id for cut in Shar.open(tmp_path / "out").cuts()]
    wanted = [cut.id for cut in cuts if cut is not cuts[3]]
    assert sorted(found) == sorted(wanted) and found != wanted
    with pytest.raises(SystemExit, match="is there already"):
        make_shar.main(command)
    for cut in cuts:
        cut.recording.sources[0].source = str(tmp_path / "missing.flac")
    write_manifest(cuts, tmp_path / "none.jsonl")
    with pytest.raises(SystemExit, match="none of its 5 utterances can be read"):
        make_shar.main([str(tmp_path / "none.jsonl"), str(tmp_path / "nothing")])
    assert not [path for path in tmp_path.iterdir() if "nothing" in path.name]
