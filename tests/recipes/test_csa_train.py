"""Contrastive training: exact after a cut on every strategy, equal over strategies and ranks, never hanging."""

import os
import shutil
import signal
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.data.index import ManifestIndex, write_manifest
from core.rundir.exit_codes import ExitCode
from core.rundir.files import LEDGER, METRICS, SCORES
from core.rundir.metrics_log import read_metrics
from core.rundir.whole_files import read_json
from tests.recipes import csa_runs, runs

NORMALIZE = F.normalize
STRATEGIES = ["ddp", "fsdp2", "zero 0", "zero 1", "zero 2", "zero 3"]
# Steps that see the same 12 crops however they are cut, without any chance in the model.
SAME_STEPS = (
    *csa_runs.WITHOUT_CHANCE, "data.crop.min_s=1.5", "data.crop.max_s=1.5", "plan.max_cut_s=1.5",
    "plan.max_duration_s=18.0", "plan.num_buckets=1", "optim.name=sgd", "optim.lr=0.05", "optim.weight_decay=0",
    "optim.max_norm=0.5", "train.max_steps=3", "train.validate_every_steps=null", "checkpoint.every_steps=null",
)  # fmt: skip

Uncut = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return csa_runs.write_config(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uncut(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Uncut:
    """The run of a strategy on some ranks that nothing interrupted; each is made once."""
    folder = tmp_path_factory.mktemp("uncut")

    def made(strategy: str, num_ranks: int) -> Path:
        root = folder / f"{strategy} on {num_ranks}"
        if not root.exists():
            codes, text = csa_runs.train(config, root, *csa_runs.strategy(strategy), num_ranks=num_ranks)
            assert codes == [ExitCode.DONE] * num_ranks, text
        return root / "tiny"

    return made


@pytest.mark.parametrize(
    ("strategy", "num_ranks", "how"),
    [("ddp", 1, "SIGKILL"), ("zero 0", 1, "link_steps"), ("zero 2", 2, "SIGKILL")],
)
def test_a_cut_run_is_the_uncut_run(
    strategy: str, num_ranks: int, how: str, config: Path, uncut: Uncut, tmp_path: Path
) -> None:
    words = (*csa_runs.strategy(strategy), "checkpoint.asynchronous=false")

    def hook(place: int) -> None:
        if place == (4 * 4 - 2) // num_ranks:  # in the middle of step 4
            os.kill(os.getpid(), signal.SIGKILL)

    if how == "SIGKILL":
        codes, text = csa_runs.train(config, tmp_path, *words, num_ranks=num_ranks, hook=hook)
        assert -9 in codes, text
        if num_ranks > 1:
            shutil.copytree(tmp_path / "tiny", tmp_path / "elsewhere" / "tiny")
    else:
        codes, text = csa_runs.train(config, tmp_path, *words, "run.link_steps=4", num_ranks=num_ranks)
        assert codes == [ExitCode.CONTINUE] * num_ranks, text
    codes, text = csa_runs.train(config, tmp_path, *words, num_ranks=num_ranks)
    assert codes == [ExitCode.DONE] * num_ranks, text
    cut, whole = tmp_path / "tiny", uncut(strategy, num_ranks)
    assert len(runs.losses(cut)) == 6 and runs.losses(cut) == runs.losses(whole)
    assert runs.samples(cut) == runs.samples(whole)
    runs.assert_same_state(runs.state(cut), runs.state(whole))
    assert csa_runs.validations(cut) == csa_runs.validations(whole)
    assert read_json(cut / SCORES) == read_json(whole / SCORES)
    if num_ranks > 1:
        _goes_on_elsewhere(config, tmp_path / "elsewhere", whole)


def _goes_on_elsewhere(config: Path, root: Path, whole: Path) -> None:
    """What ZeRO 2 began on two ranks is no other run on one rank of another strategy: the same data to its end."""
    codes, text = csa_runs.train(config, root, *csa_runs.strategy("ddp"))
    assert codes == [ExitCode.DONE], text
    assert runs.samples(root / "tiny") == runs.samples(whole)
    assert runs.losses(root / "tiny")[:2] == runs.losses(whole)[:2], "it did not begin again"


def test_a_finished_run_has_nothing_to_do(config: Path, uncut: Uncut) -> None:
    run = uncut("zero 0", 1)
    before = {name: (run / name).read_bytes() for name in (LEDGER, METRICS, SCORES)}
    codes, text = csa_runs.train(config, run.parent, *csa_runs.strategy("zero 0"))
    assert codes == [ExitCode.DONE] and "nothing to do" in text
    assert before == {name: (run / name).read_bytes() for name in before}


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_every_strategy_makes_the_same_losses(strategy: str, uncut: Uncut) -> None:
    """With dropout: whatever is drawn follows from the place of a micro-batch."""
    found, expected = uncut(strategy, 2), uncut("ddp", 2)
    assert min(csa_runs.norms(expected)) > 1.0, "clipping must be active"
    assert runs.losses(found) == pytest.approx(runs.losses(expected), rel=5e-6)
    assert csa_runs.norms(found) == pytest.approx(csa_runs.norms(expected), rel=1e-5)
    assert runs.samples(found) == runs.samples(expected)


def test_ranks_and_chunks_do_not_change_a_step(config: Path, tmp_path: Path) -> None:
    """12 pairs meet in each step: on 1, 2 or 4 ranks, and with GradCache."""
    index = ManifestIndex.open(runs.DEMO / "english_train.jsonl")
    cuts = [index.read(row) for row in np.flatnonzero(index.durations_s >= 1.6)]  # which have all the same length then
    write_manifest([cut for cut in cuts if len(cut.supervisions[0].text.split()) > 3][:40], tmp_path / "train.jsonl")
    cases = {
        "one": ("ddp", 1, ()),
        "one_in_chunks": ("zero 0", 1, ("loss.chunk_pairs=5",)),
        "two": ("zero 2", 2, ()),
        "two_in_chunks": ("fsdp2", 2, ("loss.chunk_pairs=4",)),
        "two_in_chunks_of_zero_3": ("zero 3", 2, ("loss.chunk_pairs=4",)),
        "four": ("ddp", 4, ()),
    }
    for name, (strategy, num_ranks, words) in cases.items():
        cut = (f"plan.micro_batches_per_step={num_ranks}", f"plan.max_cuts={12 // num_ranks}", f"run.name={name}")
        settings = (*SAME_STEPS, f"data.train={tmp_path}/train.jsonl", *csa_runs.strategy(strategy), *cut, *words)
        codes, text = csa_runs.train(config, tmp_path, *settings, num_ranks=num_ranks)
        assert codes == [ExitCode.DONE] * num_ranks, f"{name}: {text}"
    expected = tmp_path / "one"
    assert min(csa_runs.norms(expected)) > 0.5, "clipping must be active"
    for name in cases:
        found = tmp_path / name
        for ours, theirs in zip(runs.samples(found), runs.samples(expected), strict=True):
            assert sorted(chain(*ours)) == sorted(chain(*theirs))
        assert runs.losses(found) == pytest.approx(runs.losses(expected), rel=5e-6), name
        assert csa_runs.norms(found) == pytest.approx(csa_runs.norms(expected), rel=1e-4), name


def test_the_same_yaml_on_more_ranks_reads_the_same_and_compares_with_more(uncut: Uncut) -> None:
    one, two = uncut("ddp", 1), uncut("ddp", 2)
    assert runs.samples(one) == runs.samples(two)
    assert runs.losses(two)[0] > runs.losses(one)[0], "of 6 texts the right one is harder to find than of 3"


@pytest.mark.parametrize("kind", ["local", "siglip"])
def test_other_losses_train(kind: str, config: Path, uncut: Uncut, tmp_path: Path) -> None:
    words = {"local": (), "siglip": ("model.bias_init=-10.0", "model.scale_init=10.0")}[kind]
    settings = (*csa_runs.strategy("zero 0"), f"loss.kind={kind}", *words, "train.max_steps=4")
    codes, text = csa_runs.train(config, tmp_path, *settings, "train.validate_every_steps=null", num_ranks=2)
    assert codes == [ExitCode.DONE] * 2, text
    found, infonce = runs.losses(tmp_path / "tiny"), runs.losses(uncut("ddp", 2))
    if kind == "local":  # the same value with another gradient
        assert found[0] == pytest.approx(infonce[0], rel=1e-6)
        assert abs(found[3] - infonce[3]) > 1e-4
    else:
        bias = runs.state(tmp_path / "tiny")["/model.bias"]
        assert found[-1] < found[0] and bias.item() != -10.0


@pytest.mark.parametrize("strategy", ["ddp", "zero 2"])
def test_nan_on_one_rank_skips_the_update_on_both(strategy: str, config: Path, tmp_path: Path) -> None:
    def hook(place: int) -> None:
        F.normalize = _nan if os.environ["RANK"] == "1" and place == 2 else NORMALIZE

    settings = (*csa_runs.strategy(strategy), "train.max_steps=3", "train.validate_every_steps=null")
    codes, text = csa_runs.train(config, tmp_path, *settings, num_ranks=2, hook=hook)
    assert codes == [ExitCode.DONE] * 2, text
    records = [record for record in read_metrics(tmp_path / "tiny" / METRICS) if record["phase"] == "train"]
    assert [record["skipped_updates"] for record in records] == [0, 1, 1]  # so far
    assert [record["loss"] is None for record in records] == [False, True, False]


def _nan(x: Tensor, dim: int) -> Tensor:
    return NORMALIZE(x, dim=dim) * torch.nan
