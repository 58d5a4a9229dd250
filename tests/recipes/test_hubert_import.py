"""A checkpoint of the predecessor as the beginning of a run: it goes on as torch's AdamW would have, by hand."""

import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import recipes.hubert_iter1.assembly as assembly1
import recipes.hubert_iter1.import_lightning as import1
import recipes.hubert_iter2.assembly as assembly2
import recipes.hubert_iter2.import_lightning as import2
from core.config.load import load
from core.data.stream import LoaderConfig, TrainStream
from core.distributed import init
from core.models.hubert.model import HubertPretraining
from core.models.hubert.names import export_state, import_state
from core.parallel.loss_scale import LossScale, LossScaleConfig
from core.rundir.checkpoints import STATE, list_complete
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CHECKPOINTS, CONFIG, METRICS
from core.rundir.whole_files import read_json, read_records
from core.samplers.plan import Plan
from core.units.labelled_speech import LabelledSpeech
from tests.closeness import assert_close
from tests.core.models.hubert.test_lightning import NUM_UPDATES, gradients, lightning, saved
from tests.core.models.hubert.test_model import rival_of
from tests.recipes import hubert_runs, runs

IMPORT, ASSEMBLY = {1: import1, 2: import2}, {1: assembly1, 2: assembly2}
NUM_MORE, MAX_NORM, LR = 2, 0.5, 1e-2
SETTINGS = ("model.layer_drop=0", "model.dropout=0", "model.attention_dropout=0", "model.projection_dropout=0",
            "optim={lr: 1e-2, betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.01, max_norm: 0.5, decay: {to: all}, "
            "schedule: {kind: linear, warmup_steps: 6, total_steps: 9}}", "train.max_steps=9",
            "train.validate_every_steps=9", "features.run=tiny1")  # fmt: skip


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return hubert_runs.write_configs(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def root(configs: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of both iterations."""
    root = tmp_path_factory.mktemp("runs")
    hubert_runs.both_iterations(configs, root)
    return root


def words(iteration: int, *more: str) -> list[str]:
    return [*(word for word in SETTINGS if iteration == 2 or not word.startswith("features.run")), *more]


def trained(config: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """torchaudio's model after some updates there."""
    torch.manual_seed(5)
    rival = rival_of(HubertPretraining(config.model))
    optimizer = torch.optim.AdamW(rival.parameters(), lr=LR, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    for update in range(NUM_UPDATES):
        gradients(rival, seed=update)
        optimizer.step()
    return rival, optimizer


def by_hand(config: Any, rival: nn.Module, their: torch.optim.Optimizer, iteration: int) -> dict[str, torch.Tensor]:
    """The weights and moments after NUM_MORE updates of torch's AdamW on the first steps of the plan."""
    model = HubertPretraining(config.model)
    import_state(model, rival.state_dict(), "torchaudio")
    parameters = dict(zip(export_state(model, "torchaudio"), model.named_parameters(), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    for name, theirs in rival.named_parameters():
        optimizer.state[parameters[name][1]] = copy.deepcopy(their.state[theirs])
    corpus = LabelledSpeech.open(config.data)
    plan = Plan([source.planned for source in corpus.sources], config.plan, seed=config.run.seed)
    dataset = corpus.training_set(corpus.stores(), grid=config.grid, seed=config.run.seed)
    stream = TrainStream(plan, dataset, config=LoaderConfig(num_workers=0), ranks=init(device="cpu"))
    loss_fn = hubert_runs.TRAIN[iteration].loss_fn
    for update, step in enumerate(islice(stream.steps(), NUM_MORE), start=NUM_UPDATES + 1):
        optimizer.zero_grad()
        total = sum(batch.num_targets for batch in step.batches)
        for batch in step.batches:
            (loss_fn(model, batch, config=config.loss).loss_sum / total).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        assert norm > MAX_NORM
        optimizer.param_groups[0]["lr"] = LR * update / 6
        optimizer.step()
    found = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return found


@pytest.mark.parametrize("iteration", [1, 2])
def test_train_goes_on_from_an_imported_checkpoint(
    iteration: int, configs: dict[int, Path], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_RUNS", str(root))
    settings = words(iteration, "run.name=imported" + str(iteration))
    config = load(ASSEMBLY[iteration].Config, configs[iteration], settings)
    rival, optimizer = trained(config)
    file = saved(tmp_path / "epoch=220-step=3.ckpt", lightning(rival, optimizer, is_habana=False))
    assert IMPORT[iteration].main([str(file), "--config", str(configs[iteration]), *settings]) == 0
    run = root / f"imported{iteration}"
    assert sorted(path.name for path in run.iterdir()) == [CHECKPOINTS, CONFIG]
    assert [one.step for one in list_complete(run / CHECKPOINTS)] == [NUM_UPDATES]
    told = hubert_runs.train(configs[iteration], root, *settings, f"run.link_steps={NUM_MORE}", iteration=iteration)
    assert told[0] == [ExitCode.CONTINUE], told[1]
    records = [record for record in read_records(run / METRICS) if record["phase"] == "train"]
    assert [record["step"] for record in records] == [NUM_UPDATES + 1, NUM_UPDATES + 2]
    assert [record["lr"] for record in records] == pytest.approx([LR * 4 / 6, LR * 5 / 6])
    expected = by_hand(config, rival, optimizer, iteration)
    found = {name.removeprefix("/"): value for name, value in runs.state(run).items()}
    assert found.keys() - expected.keys() == {"optimizer_class.AdamW"} and expected.keys() <= found.keys()
    for name, value in expected.items():
        assert_close(found[name], value, name=name)


@pytest.mark.parametrize(("setting", "problem"), [
    ("run.name=tiny1", "tiny1 exists already; choose another name"),
    ("model.num_classes=9", "logit_generator.label_embeddings is (8, 8) instead of (9, 8)"),
    ("model.ffn_dim=24", "intermediate_dense.weight is (32, 16) instead of (24, 16)"),
    ("train.max_steps=2", "train.max_steps=2 must be at least the 3 updates it has had"),
    ("optim={name: sgd, lr: 0.1}", "SGD has none: set optim.name=adamw"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    setting: str, problem: str, configs: dict[int, Path], root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("BATON_RUNS", str(root))
    config = load(assembly1.Config, configs[1])
    rival, optimizer = trained(replace(config, model=replace(config.model, layer_drop=0.0)))
    file = saved(tmp_path / "a.ckpt", lightning(rival, optimizer, is_habana=False))
    more = ["labelling.kmeans.num_clusters=9"] if "num_classes" in setting else []
    before = sorted(root.iterdir())
    with pytest.raises(SystemExit) as ended:
        import1.main([str(file), "--config", str(configs[1]), "run.name=other", setting, *more])
    assert ended.value.code == ExitCode.CONFIG
    assert problem in capsys.readouterr().err
    assert sorted(root.iterdir()) == before


def test_a_run_in_fp16_begins_with_its_loss_scale(
    configs: dict[int, Path], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its engine will ask for it."""
    monkeypatch.setenv("BATON_RUNS", str(root))
    file = saved(tmp_path / "a.ckpt", lightning(*trained(load(assembly1.Config, configs[1])), is_habana=False))
    settings = ["run.name=fp16", "parallel={precision: fp16, loss_scale: {initial_power: 7}}"]
    assert import1.main([str(file), "--config", str(configs[1]), *settings]) == 0
    (checkpoint,) = list_complete(root / "fp16" / CHECKPOINTS)
    scale = LossScale(LossScaleConfig(), torch.device("cpu"))
    scale.restore(read_json(checkpoint.directory / STATE)["engine"])
    assert float(scale.scale) == 128.0


def test_a_file_must_be_named(configs: dict[int, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        import1.main(["--config", str(configs[1])])
    assert ended.value.code == ExitCode.CONFIG and "name the file to import first" in capsys.readouterr().err
