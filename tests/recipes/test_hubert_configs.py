"""The configurations of both iterations: complete, with the published numbers, and checked where keys must agree."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.config.load import load
from core.config.schema import ConfigError
from core.models.hubert.config import OF_PRETRAINING, HubertConfig, hubert_config
from core.models.hubert.model import HubertCTC, HubertPretraining
from core.optim.optim import TriStage, learning_rate
from core.optim.parameters import freeze, late_parameters
from core.text.vocabulary import CharacterVocabulary
from core.train.trained import TrainedRun
from launchers.chain.pipeline_file import read_pipeline
from launchers.slurm.header import read_header
from recipes.hubert_iter1 import assembly as iter1
from recipes.hubert_iter2 import assembly as iter2
from recipes.hubert_iter2 import finetune_assembly

RECIPES = Path(__file__).parents[2] / "recipes"
PIPELINES = ["pipeline", "tiny_pipeline", "quality_pipeline"]
CONFIG = {"hubert_iter1": iter1.Config, "hubert_iter2": iter2.Config}
FILES = [path for name in CONFIG for path in sorted((RECIPES / name).glob("*.yaml")) if "pipeline" not in path.stem]
TORCHAUDIO, FAIRSEQ = (RECIPES / "hubert_iter2" / f"{name}.yaml" for name in ("finetune", "finetune_fairseq"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_yaml_loads(path: Path) -> None:
    schema = finetune_assembly.Config if path.stem.startswith("finetune") else CONFIG[path.parent.name]
    assert load(schema, path).run.seed == 1337


@pytest.mark.parametrize(("name", "num_steps", "num_parameters"), [
    ("hubert_iter1", 250_000, 94_594_176), ("hubert_iter2", 400_000, 94_696_576),
])  # fmt: skip
def test_the_published_numbers(name: str, num_steps: int, num_parameters: int) -> None:
    config = load(CONFIG[name], RECIPES / name / "config.yaml")
    with torch.device("meta"):
        model = HubertPretraining(config.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    rates = [learning_rate(config.optim, update - 1) for update in (1, 32_000, num_steps)]
    assert rates == pytest.approx([1.5625e-8, 5e-4, 0.0])
    assert config.plan.micro_batches_per_step * config.plan.max_duration_s == 2_800
    assert config.train.max_steps == num_steps and config.optim.decay.to == "all"
    assert (config.plan.min_cut_s, config.data.crop.max_s) == (32_000 / 16_000, 250_000 / 16_000)


@pytest.mark.parametrize(("path", "lr", "num_steps", "clip", "mask", "layer_drop", "stages"), [
    (TORCHAUDIO, 5e-5, 20_000, 5.0, 0.65, 0.05, (2_000, 8_000, 10_000)),
    (FAIRSEQ, 2e-5, 25_000, None, 0.75, 0.1, (8_000, 0, 72_000)),
], ids=["torchaudio", "fairseq"])  # fmt: skip
def test_the_published_numbers_of_fine_tuning(
    path: Path, lr: float, num_steps: int, clip: float | None, mask: float, layer_drop: float, stages: tuple[int, ...]
) -> None:
    config = load(finetune_assembly.Config, path)
    optim, schedule, model = config.optim, config.optim.schedule, config.model
    assert isinstance(schedule, TriStage) and config.data.time_mask and config.data.channel_mask and optim.thaw
    assert (optim.lr, config.train.max_steps, optim.max_norm) == (lr, num_steps, clip)
    assert (config.data.time_mask.probability, model.layer_drop) == (mask, layer_drop)
    assert (schedule.warmup_steps, schedule.hold_steps, schedule.decay_steps) == stages
    assert (schedule.initial_ratio, schedule.final_ratio) == (0.01, 0.05)
    assert (optim.name, optim.betas, optim.eps, optim.weight_decay) == ("adamw", [0.9, 0.98], 1e-8, 0.0)
    assert (config.data.time_mask.length, config.data.time_mask.min_spans) == (10, 2)
    assert (config.data.channel_mask.probability, config.data.channel_mask.length) == (0.5, 64)
    dropouts = (model.projection_dropout, model.attention_dropout, model.activation_dropout, model.dropout)
    assert dropouts == (0.0, 0.0, 0.1, 0.0) and optim.thaw.after_steps == 10_000
    assert config.plan.micro_batches_per_step * config.plan.max_duration_s == 200
    fine_tuned = HubertCTC(replace(model, num_layers=1), vocab_size=29)
    assert len(CharacterVocabulary(config.data.symbols or "")) == 29
    freeze(fine_tuned, optim.freeze)
    frozen = {name for name, parameter in fine_tuned.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        f"hubert.feature_extractor.{name}" for name, _ in fine_tuned.hubert.feature_extractor.named_parameters()
    }
    late = late_parameters(fine_tuned, optim.thaw)
    assert len(late) + len(frozen) + 2 == len(list(fine_tuned.parameters())), "all but the head"


@pytest.mark.parametrize(("name", "pretraining"), [
    ("finetune", "config"), ("finetune_fairseq", "config"), ("finetune_tiny", "tiny"),
])  # fmt: skip
def test_what_is_fine_tuned_is_what_was_pretrained(name: str, pretraining: str) -> None:
    folder = RECIPES / "hubert_iter2"
    begun = load(finetune_assembly.Config, folder / f"{name}.yaml")
    pretrained = load(iter2.Config, folder / f"{pretraining}.yaml")
    assert begun.pretrained is not None and begun.pretrained.run == pretrained.run.name
    run = TrainedRun(folder, iter2.RECIPES, "pretrained.run")
    run.refuse_differences(pretrained.model, begun.model, key="model", may_differ=OF_PRETRAINING)
    assert begun.data.normalize == pretrained.data.crop.normalize


@pytest.mark.parametrize("size", ["large", "xlarge"])
def test_the_larger_models(size: str) -> None:
    config = load(iter2.Config, RECIPES / "hubert_iter2" / f"{size}.yaml")
    assert config.model == hubert_config(size, num_classes=500)  # type: ignore[arg-type]
    seconds = {"large": 128 * 56.25, "xlarge": 256 * 22.5}
    assert config.plan.micro_batches_per_step * config.plan.max_duration_s == seconds[size]
    assert (config.optim.lr, config.optim.max_norm) == ({"large": 1.5e-3, "xlarge": 3e-3}[size], 1.0)
    assert isinstance(config.model, HubertConfig) and config.data.crop.normalize


@pytest.mark.parametrize("name", CONFIG)
@pytest.mark.parametrize(("setting", "problem"), [
    ("optim.schedule.total_steps=5", "optim.schedule.total_steps=5 must equal train.max_steps="),
    ("model.num_classes=51", "labelling.kmeans.num_clusters=50 must equal model.num_classes=51"),
    ("data.crop.max_s=3.0", "plan.max_cut_s=4.0 must equal data.crop.max_s=3.0"),
    ("plan.over_budget=skip", "plan.over_budget=skip must be crop"),
    ("quality.layers=[1,4]", "must be at most 3"),
])  # fmt: skip
def test_keys_that_must_agree(name: str, setting: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(CONFIG[name], RECIPES / name / "tiny.yaml", [setting])
    assert problem in str(raised.value)


SUBS = sorted((RECIPES / "hubert_iter2").glob("*.sub"))


@pytest.mark.parametrize("sub", SUBS, ids=lambda path: path.stem)
def test_a_submission_has_the_name_that_its_configuration_and_the_next_expect(sub: Path) -> None:
    """The launcher names a run after its job: `data.labels` and `run.name` of the configuration are these."""
    module, path = re.findall(r"-m recipes\.hubert_iter2\.(\w+) --config (\S+\.yaml)", sub.read_text())[0]
    schema = finetune_assembly.Config if module == "finetune" else iter2.Config
    config = load(schema, RECIPES.parent / path)
    expected = config.data.labels if module == "prepare" else config.run.name  # type: ignore[union-attr]
    assert read_header(sub).job_name == expected


@pytest.mark.parametrize(
    "path", [*SUBS, *FILES, RECIPES / "hubert_iter2" / "README.md"], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_the_runs_that_commands_name_are_those_of_pipelines(path: Path) -> None:
    made = {
        stage.run for name in PIPELINES for stage in read_pipeline(RECIPES / "hubert_iter2" / f"{name}.yaml")[1]
    } | {"published"}
    found = re.findall(r"launch\.sh .*\b(?:features|pretrained)\.run=([\w.]+)", path.read_text())
    assert set(found) <= made
    if path.stem.startswith(("finetune", "large", "xlarge")):
        of = {".train2"} if path.suffix == ".sub" or path.suffix == ".yaml" else set()
        assert found and {name[name.index(".") :] for name in found} == of, "the command says which"


def test_every_size_and_way_of_fine_tuning_can_be_launched() -> None:
    trained = {path.stem for path in FILES if path.parent.name == "hubert_iter2"} - {"config", "tiny"}
    assert trained == {"large", "xlarge", "finetune", "finetune_fairseq", "finetune_tiny"} <= {sub.stem for sub in SUBS}
    assert {"large_prepare", "xlarge_prepare"} <= {sub.stem for sub in SUBS}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_pipeline_hands_on_labels_and_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    _, stages = read_pipeline(RECIPES / "hubert_iter2" / f"{name}.yaml")
    assert [stage.name for stage in stages] == ["labels1", "train1", "labels2", "train2"]
    runs = {stage.name: str(tmp_path / stage.run) for stage in stages}
    handed = [[word for word in stage.settings if word.startswith(("data.labels=", "features."))] for stage in stages]
    labels, teacher = [f"data.labels={runs[name]}" for name in ("labels1", "labels2")], f"features.run={runs['train1']}"
    assert [sorted(words) for words in handed] == [[], [labels[0]], [teacher], [labels[1], teacher]]
    schemas = [iter1.Config, iter1.Config, iter2.Config, iter2.Config]
    for stage, schema in zip(stages, schemas, strict=True):  # the settings are known, and agree with one another
        (path,) = re.findall(r"--config (\S+)", stage.header.path.read_text())
        load(schema, RECIPES.parent / path, stage.settings)
