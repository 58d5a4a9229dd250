"""The sections that all recipes have: what must agree is said once, and given twice it must be the same."""

from pathlib import Path
from typing import ClassVar

import pytest

from core.config.load import load, to_dict
from core.config.schema import ConfigError, section
from core.samplers.settings import PlanConfig
from core.train.settings import TrainingConfig


@section
class ModelConfig:
    size: int
    depth: int = 2


@section
class DataConfig:
    size: int = 7
    crop_s: float | None = None


@section
class Config(TrainingConfig):
    EQUAL: ClassVar = (*TrainingConfig.EQUAL, ("data.size", "model.size"), ("plan.max_cut_s", "data.crop_s"))

    plan: PlanConfig
    model: ModelConfig
    data: DataConfig | None = None

    def problems(self) -> list[str]:
        wrong = [f"model.depth={self.model.depth} must be even"] if self.model.depth % 2 else []
        return [*super().problems(), *wrong]


def text(*, max_steps: str = "", schedule: str = "kind: constant", model: str = "", rest: str = "") -> str:
    return f"""\
run: {{name: a}}
plan: {{micro_batches_per_step: 1, max_duration_s: 9}}
train: {{{max_steps}}}
optim:
  lr: 1
  schedule: {{{schedule}}}
model: {{{model}}}
{rest}
"""


COSINE = "kind: cosine, warmup_steps: 1"


def made(tmp_path: Path, yaml: str, *overrides: str) -> Config:
    path = tmp_path / "a.yaml"
    path.write_text(yaml)
    return load(Config, path, overrides)


@pytest.mark.parametrize("schedule", [COSINE, f"{COSINE}, total_steps: 5"])
@pytest.mark.parametrize("max_steps", ["", "max_steps: 5"])
def test_one_of_two_keys_may_be_left_out(tmp_path: Path, max_steps: str, schedule: str) -> None:
    yaml = text(max_steps=max_steps, schedule=schedule, model="size: 7")
    if "5" not in max_steps + schedule:
        with pytest.raises(ConfigError) as raised:
            made(tmp_path, yaml)
        assert len(raised.value.problems) == 2 and all("steps: missing" in line for line in raised.value.problems)
        return
    resolved = to_dict(made(tmp_path, yaml))
    assert resolved["train"]["max_steps"] == resolved["optim"]["schedule"]["total_steps"] == 5


def test_a_key_follows_one_of_the_command_line(tmp_path: Path) -> None:
    config = made(tmp_path, text(max_steps="max_steps: 5", schedule=COSINE, model="size: 7"), "train.max_steps=8")
    assert to_dict(config)["optim"]["schedule"]["total_steps"] == 8


def test_what_has_no_such_key_is_left_alone(tmp_path: Path) -> None:
    """A constant rate has no end, and a section that may be absent is not made for the sake of a key."""
    rest = "data: null"
    config = made(tmp_path, text(max_steps="max_steps: 5", schedule="kind: constant", model="size: 3", rest=rest))
    assert config.data is None and config.model.size == 3
    assert made(tmp_path, text(max_steps="max_steps: 5", model="size: 3"), "plan.max_cut_s=2").data is None


def test_a_section_that_is_given_gets_the_key(tmp_path: Path) -> None:
    yaml = text(max_steps="max_steps: 5", model="depth: 4", rest="data: {size: 9}")
    config = made(tmp_path, yaml, "plan.max_cut_s=2")
    assert config.model == ModelConfig(size=9, depth=4) and config.data == DataConfig(size=9, crop_s=2.0)


def test_given_and_different_is_an_error_at_its_line(tmp_path: Path) -> None:
    yaml = text(max_steps="max_steps: 5", schedule=f"{COSINE}, total_steps: 6", model="size: 8, depth: 3")
    with pytest.raises(ConfigError) as raised:
        made(tmp_path, yaml, "data.size=7")
    advice = "leave one of them out, or give both the same value"
    assert raised.value.problems == [
        f"{tmp_path}/a.yaml:6: optim.schedule.total_steps=6 must equal train.max_steps=5; {advice}",
        f"{tmp_path}/a.yaml:7: model.depth=3 must be even",
        f"command line: data.size=7 must equal model.size=8; {advice}",
    ]


def test_a_wrong_section_does_not_hide_what_contradicts_itself(tmp_path: Path) -> None:
    yaml = text(max_steps="max_steps: 5", schedule=f"{COSINE}, total_steps: 6", model="size: 7", rest="stop: {a: 1}")
    with pytest.raises(ConfigError) as raised:
        made(tmp_path, yaml)
    assert [":6: optim.schedule" in line or "stop.a: unknown key" in line for line in raised.value.problems] == [
        True
    ] * 2


@pytest.mark.parametrize("broken", ["optim: 3", "optim: null", "optim: {lr: 1, schedule: [cosine]}", "train: 5"])
def test_what_is_no_section_is_said_and_nothing_else_breaks(tmp_path: Path, broken: str) -> None:
    name = broken.partition(":")[0]
    lines = text(max_steps="max_steps: 5", schedule=COSINE, model="size: 7").splitlines()
    kept = [line for line in lines if not line.startswith((name, "  "))]
    with pytest.raises(ConfigError, match=f"{name}.*expected"):
        made(tmp_path, "\n".join([*kept, broken]))
