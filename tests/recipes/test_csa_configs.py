"""The configurations of csa_stage1: complete, the predecessor's hyperparameters, and checked where keys must agree."""

from pathlib import Path

import pytest

from core.config.load import diff, load, to_dict
from core.config.schema import ConfigError
from core.models.csa import CsaModel
from core.optim.optim import learning_rate
from core.optim.parameters import parameters
from core.rundir.exit_codes import ExitCode
from recipes.csa_stage1 import train
from recipes.csa_stage1.assembly import Config

RECIPE = Path(train.__file__).parent
FILES = ["config", "stage2", "stage3", "tiny", "minilm"]


def config_of(name: str, *settings: str) -> Config:
    return load(Config, RECIPE / f"{name}.yaml", settings)


@pytest.mark.parametrize("name", FILES)
def test_every_yaml_loads(name: str) -> None:
    config = config_of(name)
    assert config.parallel.strategy == "deepspeed"
    assert config.run.name == {"config": "csa_stage1", "stage2": "csa_stage1_zero2", "stage3": "csa_stage1_zero3",
                               "tiny": "csa_tiny", "minilm": "csa_minilm"}[name]  # fmt: skip


def test_the_stages_differ_in_nothing_else() -> None:
    mainline = to_dict(config_of("config"))
    for name, stage in (("stage2", 2), ("stage3", 3)):
        changed = {line.partition(":")[0] for line in diff(mainline, to_dict(config_of(name)))}
        sizes = {"parallel.zero.reduce_bucket_size", "parallel.zero.allgather_bucket_size"} if stage == 2 else set()
        assert changed == {"run.name", "parallel.zero.stage"} | sizes
        assert config_of(name).parallel.zero.stage == stage


def test_the_predecessors_hyperparameters() -> None:
    """Those of CSRef 2.0: Adam, a logarithmic warmup to step 10,000 and a cosine to step 100,000, 128 pairs a GPU."""
    config = config_of("config")
    optim = config.optim
    assert (optim.lr, optim.betas, optim.eps, optim.weight_decay) == (1e-4, [0.8, 0.999], 1e-8, 3e-7)
    assert optim.max_norm == 1.0 and config.train.max_steps == 100_000
    rates = [learning_rate(optim, update - 1) for update in (10_000, 55_000, 100_000)]
    assert rates == pytest.approx([1e-4, 1e-4 * (0.5 + 0.5e-4), 1e-8], rel=1e-3)
    assert (config.plan.max_cuts, config.plan.constant_cuts) == (128, True)
    crop = config.data.crop
    assert crop is not None and (crop.min_s, crop.max_s) == (1.0, 3.0)
    assert config.model.scale_init == pytest.approx(1 / 0.07) and config.model.projection_dim is None
    assert config.model.pooling.kind == "att_flat" and config.model.has_frozen_text


def test_scale_and_norms_do_not_decay() -> None:
    config = config_of("tiny")
    model = CsaModel(config.model, vocab_size=30)
    decays = {one.name: one.decays for one in parameters(model, freeze=config.optim.freeze, decay=config.optim.decay)}
    assert not decays["log_scale"] and decays["speech_projection.weight"]
    assert not any(decays[name] for name in decays if name.endswith("bias") or "norm" in name)


@pytest.mark.parametrize(("name", "setting", "problem"), [
    ("tiny", "optim.schedule.total_steps=5", "optim.schedule.total_steps=5 must equal train.max_steps=300"),
    ("tiny", "data.crop.max_s=2.0", "plan.max_cut_s=3.0 must equal data.crop.max_s=2.0"),
    ("tiny", "plan.over_budget=skip", "plan.over_budget=skip must be crop"),
    ("tiny", "data.crop=null", "plan.over_budget=crop needs data.crop"),
    ("tiny", "loss.kind=siglip", "loss.kind=siglip needs model.bias_init"),
    ("tiny", "data.pairs.normalize=true", "data.pairs.normalize must be false with model.speech.kind=lmu"),
    ("tiny", "data.pairs.text=written", "pairs.text=written must be spoken with tokenizer.kind=characters"),
    ("tiny", "plan.max_cuts=65", "max_duration_s=192 must hold max_cuts=65 cuts of 3 s"),
    ("tiny", "loss.chunk_pairs=0", "loss.chunk_pairs"),
    ("tiny", "parallel.zero.stage=4", "parallel.zero.stage"),
    ("tiny", "parallel.zero.offload_optimizer=true", "offload_optimizer=True needs stage 1 or 2 or 3"),
    ("tiny", "loss.kind=info_nce", "loss.kind"),
    ("config", "pretrained.run=lmu_demo", "pretrained must be null with model.speech.kind=pretrained"),
    ("config", "data.tokenizer={kind: bytes}", "data.tokenizer.kind=bytes must be huggingface"),
    ("stage2", "model.speech.layer_drop=0.1", "layer_drop=0.1 of model.speech must be 0 with parallel.zero.stage=2"),
])  # fmt: skip
def test_keys_that_must_agree(name: str, setting: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_of(name, setting)
    assert problem in str(raised.value)


def test_all_that_disagrees_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan.over_budget=skip", "loss.kind=siglip", "optim.schedule.total_steps=7"]
    with pytest.raises(SystemExit) as raised:
        train.main(["--config", str(RECIPE / "tiny.yaml"), *words])
    assert raised.value.code == ExitCode.CONFIG
    told = capsys.readouterr().err
    assert all(problem in told for problem in ("must be crop", "bias_init", "must equal train.max_steps=300"))
