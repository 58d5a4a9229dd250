"""Fine-tuning: what is frozen, exact resume, any number of ranks, and what cannot be begun with."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from core.rundir.exit_codes import ExitCode
from core.rundir.files import BAD_SAMPLES, LEDGER, METRICS, SCORES
from core.rundir.whole_files import read_json, read_records
from recipes.hubert_iter2 import evaluate
from tests.closeness import assert_close
from tests.recipes import finetune_runs, runs

BY_NUMBER_OF_RANKS = ("model.layer_drop=0", "model.dropout=0", "model.attention_dropout=0", "optim.weight_decay=0",
                      "model.projection_dropout=0", "optim.name=sgd", "optim.lr=0.5", "optim.max_norm=0.5",
                      "optim.thaw.after_steps=2", "train.max_steps=4", "train.validate_every_steps=4",
                      "checkpoint.every_steps=null")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs `tiny1` and `finetuned`, that nothing interrupted, and `corpus/finetune.yaml`."""
    root = tmp_path_factory.mktemp("whole")
    finetune_runs.pretrain(root / "pretraining", root)
    codes, text = finetune_runs.finetune(finetune_runs.write_config(root / "corpus"), root)
    assert codes == [ExitCode.DONE], text
    return root


@pytest.fixture
def config(whole: Path) -> Path:
    return whole / "corpus" / "finetune.yaml"


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    (tmp_path / "tiny1").symlink_to(whole / "tiny1")
    return tmp_path


def _parts(run: Path, *, of: str) -> dict[str, Any]:
    """What the newest checkpoint has of `model` or `optimizer`."""
    return {
        name.removeprefix(f"/{of}."): value for name, value in runs.state(run).items() if name.startswith(f"/{of}.")
    }


def test_what_is_frozen_stays_to_the_bit_and_thaws_when_it_should(config: Path, whole: Path, root: Path) -> None:
    pretrained = _parts(whole / "tiny1", of="model")
    assert finetune_runs.finetune(config, root, "run.link_steps=3")[0] == [ExitCode.CONTINUE]
    frozen = {name: value for name, value in _parts(root / "finetuned", of="model").items() if name[:6] == "hubert"}
    assert frozen and all(torch.equal(value, pretrained[name]) for name, value in frozen.items())
    kept = {name.rpartition(".")[0] for name in _parts(root / "finetuned", of="optimizer")}
    assert kept == {"head.weight", "head.bias"}
    codes, text = finetune_runs.finetune(config, root)
    assert codes == [ExitCode.DONE], text
    thawed, states = _parts(root / "finetuned", of="model"), _parts(root / "finetuned", of="optimizer")
    for name, value in frozen.items():
        is_extractor = name.startswith("hubert.feature_extractor")
        assert torch.equal(thawed[name], value) == is_extractor, name
        assert (f"{name}.step" in states) == (not is_extractor), name
    steps = {name.split(".")[0]: float(value) for name, value in states.items() if name.endswith(".step")}
    assert steps == {"head": 6, "hubert": 3}
    runs.assert_same_state(runs.state(root / "finetuned"), runs.state(whole / "finetuned"))


@pytest.mark.parametrize("step", [2, 5], ids=["while frozen", "thawed"])
def test_a_killed_run_is_the_uncut_run(step: int, config: Path, whole: Path, root: Path) -> None:
    def hook(place: int) -> None:
        if place == 2 * step - 1:  # before its second micro-batch
            os.kill(os.getpid(), signal.SIGKILL)

    words = ("checkpoint.asynchronous=false",)
    assert finetune_runs.finetune(config, root, *words, hook=hook)[0] == [-9]
    (root / "tiny1").unlink()  # once there is a checkpoint, or where it began anew, the pretrained run is not needed
    if step == 2:
        (root / "tiny1").symlink_to(whole / "tiny1")
    codes, text = finetune_runs.finetune(config, root, *words)
    assert codes == [ExitCode.DONE], text
    cut, uncut = root / "finetuned", whole / "finetuned"
    assert len(runs.losses(cut)) == 6 and runs.losses(cut) == runs.losses(uncut)
    assert runs.samples(cut) == runs.samples(uncut)
    runs.assert_same_state(runs.state(cut), runs.state(uncut))
    assert read_json(cut / SCORES) == read_json(uncut / SCORES)


def test_two_ranks_train_as_one(config: Path, root: Path) -> None:
    found = {}
    for name, num_ranks, strategy in (("one", 1, "ddp"), ("two", 2, "ddp"), ("sharded", 2, "fsdp2")):
        words = (*BY_NUMBER_OF_RANKS, f"run.name={name}", f"parallel.strategy={strategy}")
        codes, text = finetune_runs.finetune(config, root, *words, num_ranks=num_ranks)
        assert codes == [ExitCode.DONE] * num_ranks, text
        found[name] = root / name
    norms = [r["grad_norm"] for r in read_records(found["one"] / METRICS) if r["phase"] == "train"]
    assert min(norms) > 0.5, "clipping must be active"
    expected = _parts(found["one"], of="model")
    for name in ("two", "sharded"):
        assert runs.samples(found[name]) == runs.samples(found["one"])
        assert runs.losses(found[name]) == pytest.approx(runs.losses(found["one"]), rel=1e-5)
        parameters = _parts(found[name], of="model")
        for key, value in expected.items():
            assert_close(parameters[key], value, rel=5e-5, name=key)
        assert read_json(found[name] / SCORES) == read_json(found["one"] / SCORES)


def test_ranks_without_masks_and_without_clips_do_not_wait_for_each_other(config: Path, root: Path) -> None:
    words = (
        "data.time_mask=null",
        "optim.thaw=null",
        "plan.max_cuts=12",
        "plan.max_duration_s=60",
        "train.max_steps=2",
    )
    codes, text = finetune_runs.finetune(config, root, *words, num_ranks=2)
    assert codes == [ExitCode.DONE] * 2, text


def test_a_finished_run_has_nothing_to_do(config: Path, whole: Path) -> None:
    run = whole / "finetuned"
    before = {name: (run / name).read_bytes() for name in (LEDGER, METRICS, SCORES)}
    codes, text = finetune_runs.finetune(config, whole)
    assert codes == [ExitCode.DONE] and "nothing to do" in text
    assert before == {name: (run / name).read_bytes() for name in before}


@pytest.mark.parametrize(("setting", "problem"), [
    ("model.ffn_dim=64", "pretrained.run=tiny1 has another encoder: model.ffn_dim: 32 there, 64 here"),
    ("pretrained.run=lmu", "pretrained.run=lmu is no run of hubert_iter1 or hubert_iter2: "),
    ("pretrained.run=nowhere", "nowhere is not the directory of a trained run"),
    ("pretrained.run=untrained", "untrained has no complete checkpoint"),
    ("pretrained.checkpoint=0123", "pretrained.checkpoint=0123: the newest weights of"),
    ("data.normalize=true", "data.normalize=True must be False, as pretrained.run=tiny1 heard audio"),
    ("data.channel_mask.length=16", "data.channel_mask.length=16 must be below model.dim=16"),
    ("plan.over_budget=crop", "plan.over_budget=crop would cut words off"),
    ("data.symbols=abc", "must have the space"),
    (r"optim.thaw.patterns=[encoder]", "thaw.patterns=encoder must match a parameter"),
])  # fmt: skip
def test_what_cannot_be_begun_with_is_said(setting: str, problem: str, config: Path, root: Path) -> None:
    for name in ("lmu", "untrained"):
        (root / name).mkdir()
    (root / "lmu" / "config.yaml").write_text(yaml.safe_dump({"model": {"encoder": {"kind": "lmu"}, "head": {}}}))
    shutil.copy(root / "tiny1" / "config.yaml", root / "untrained")
    codes, text = finetune_runs.finetune(config, root, setting)
    assert codes == [ExitCode.CONFIG] and problem in text, text


def test_what_a_run_began_with_cannot_change(config: Path, whole: Path, root: Path) -> None:
    assert finetune_runs.finetune(config, root, "run.link_steps=2")[0] == [ExitCode.CONTINUE]
    codes, text = finetune_runs.finetune(config, root, "pretrained.run=other")
    assert codes == [ExitCode.CONFIG] and "pretrained.run: tiny1 -> other" in text


def test_letters_that_cannot_be_spelled_end_a_run_that_is_full_of_them(config: Path, root: Path) -> None:
    codes, text = finetune_runs.finetune(config, root, "data.symbols=' abc'", "train.max_steps=20")
    assert codes == [ExitCode.DATA], text
    listed = list(read_records(root / "finetuned" / BAD_SAMPLES))
    assert len(listed) > 10 and all("characters outside the vocabulary" in record["reason"] for record in listed)


def test_evaluate_of_what_was_never_trained(
    config: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATON_RUNS", str(root))
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--config", str(config), "run.name=nowhere"])
    assert stopped.value.code == ExitCode.CONFIG
    assert "nowhere has no vocabulary.txt: fine-tune the run first" in capsys.readouterr().err
