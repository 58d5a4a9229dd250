"""One YAML with many mistakes gives all of them, each at its line; what is right is read exactly as written."""

import pickle
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest
import yaml

from core.config.load import diff, load, load_section, parse_args, to_dict, to_yaml
from core.config.schema import ConfigError, section
from core.config.yaml_source import resolve


@section
class Linear:
    kind: Literal["linear"] = "linear"
    warmup_steps: int = 0


@section
class Cosine:
    kind: Literal["cosine"]
    min_ratio: float = 0.1


@section
class Optim:
    name: Literal["adamw", "sgd"] = "adamw"
    lr: float
    betas: Annotated[list[float], pydantic.Field(min_length=2, max_length=2)] = field(
        default_factory=lambda: [0.9, 0.98]
    )
    max_norm: Annotated[float, pydantic.Field(gt=0)] | None = None
    schedule: Linear | Cosine

    def __post_init__(self) -> None:
        if self.name == "sgd" and self.lr > 1:
            raise ValueError(f"lr={self.lr} must be at most 1 with name=sgd")


@section
class Source:
    name: str
    weight: int = 1


@section
class Step:
    lr: float
    steps: int = 1


@section
class Root:
    steps: int
    start: str = "now"
    fast: bool = False
    optim: Optim
    sources: list[Source] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    limit: int | str | None = None
    extra: Source | None = None

    def __post_init__(self) -> None:
        if self.steps % 2:
            raise ConfigError([f"steps={self.steps} must be even", "and a second contradiction"])
        if self.optim.max_norm == 7:
            raise ValueError("optim.max_norm=7 must not be 7")


GOOD = """\
steps: 20
optim:
  lr: 3e-4
  schedule: {kind: cosine, min_ratio: 0}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Root, path, overrides)
    return [problem.replace(f"{path}:", "") for problem in caught.value.problems]


def test_values_are_read_as_written(write) -> None:
    config = load(
        Root, write(GOOD + "start: 12:00:00\nsources:\n- name: no\n  weight: 1_000\nweights: {a: 1, b: .5}\n")
    )
    assert config.optim.lr == 3e-4 and isinstance(config.optim.lr, float)
    assert config.start == "12:00:00"
    assert config.sources == [Source(name="no", weight=1000)]
    assert config.weights == {"a": 1.0, "b": 0.5}
    assert config.optim.schedule == Cosine(kind="cosine", min_ratio=0.0)
    assert config.optim.betas == [0.9, 0.98] and config.extra is None and config.limit is None


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "True", "FALSE", "12:00:00", "042", "1e", "0x1F", "2024-01-01", "1.2.3"]
)
def test_what_is_not_plainly_a_number_or_boolean_is_a_string(text: str) -> None:
    assert resolve(text) == text


@pytest.mark.parametrize(
    "text, value",
    [("3e-4", 3e-4), ("1E6", 1e6), ("-.5", -0.5), ("5.", 5.0), ("0", 0), ("-3", -3), ("true", True), ("~", None)],
)
def test_numbers_and_words(text: str, value: object) -> None:
    assert resolve(text) == value and type(resolve(text)) is type(value)


def test_every_mistake_is_reported_at_once_with_its_line(write) -> None:
    path = write(
        "steps: 5\n"
        "start: 3\n"
        "fasst: yes\n"
        "fast: yes\n"
        "optim:\n"
        "  name: adam\n"
        "  lr: fast\n"
        "  betas: [0.9, x]\n"
        "  max_norm: -1\n"
        "  schedule: {kind: cosin}\n"
        "sources:\n"
        "  - name: a\n"
        "    weight: 1.5\n"
        "  - {nam: b}\n"
        "  - 3\n"
        "extra: {}\n"
        "start: x\n"
    )
    assert problems(path, "lr=4", "sources.7.weight=2", "foo", "fast=[1", "optim.lrr=3") == [
        "1: steps=5 must be even",  # the check ran although other fields are wrong
        "1: and a second contradiction",
        "2: start: got 3, expected a valid string",
        "3: fasst: unknown key; did you mean fast?",
        '4: fast: got "yes", expected a valid boolean; write true or false',
        "6: optim.name: got \"adam\", expected 'adamw' or 'sgd'; did you mean adamw?",
        '7: optim.lr: got "fast", expected a valid number',
        '8: optim.betas.1: got "x", expected a valid number',
        "9: optim.max_norm: got -1, expected greater than 0",
        '10: optim.schedule.kind: got "cosin", expected one of linear, cosine; did you mean cosine?',
        "13: sources.0.weight: got 1.5, expected a valid integer",
        "14: sources.1.nam: unknown key; did you mean name?",
        "14: sources.1.name: missing, expected a string",
        "15: sources.2: got 3, expected a section with the keys name, weight",
        "16: extra.name: missing, expected a string",
        "17: duplicate key start, first given in line 2",
        "command line: sources.7.weight: no such place; sources is a list of 3, counted from 0",
        "command line: got foo, expected section.key=value",
        "command line: fast: not valid YAML: while parsing a flow sequence expected ',' or ']', "
        "but got '<stream end>' (quote the value)",
        "command line: lr: unknown key; did you mean optim.lr?",
        "command line: optim.lrr: unknown key; did you mean lr?",
    ]


def test_a_check_that_needs_a_wrong_value_is_silent(write) -> None:
    assert problems(write(GOOD), "optim.name=sgd", "optim.lr=no") == [
        'command line: optim.lr: got "no", expected a valid number'
    ]
    # lr is named first but the check of the outer section still sees the good max_norm
    assert problems(write(GOOD), "optim.lr=no", "optim.max_norm=7") == [
        'command line: optim.lr: got "no", expected a valid number',
        "command line: optim.max_norm=7 must not be 7",
    ]


def test_contradictions_of_two_sections_are_both_reported(write) -> None:
    path = write(GOOD.replace("20", "3").replace("3e-4", "2.0\n  name: sgd"))
    assert problems(path) == [
        "1: steps=3 must be even",
        "1: and a second contradiction",
        "3: optim: lr=2.0 must be at most 1 with name=sgd",
    ]


def test_missing_keys_and_sections(write) -> None:
    assert problems(write("start: x\n")) == [
        "1: steps: missing, expected an integer",
        "1: optim: missing, expected a section with the keys name, lr, betas, max_norm, schedule",
    ]
    assert problems(write("steps: 2\noptim:\n  lr: 1\n")) == [
        "2: optim.schedule: missing, expected a section with the keys kind, warmup_steps or "
        "a section with the keys kind, min_ratio"
    ]
    assert problems(write(GOOD), "optim.schedule={}") == [
        "command line: optim.schedule.kind: missing, expected one of linear, cosine"
    ]


@pytest.mark.parametrize(
    "line, expected",
    [
        (
            "extra: !!python/object/apply:os.system [ls]",
            "tag:yaml.org,2002:python/object/apply:os.system is not accepted",
        ),
        ("extra: &a {name: x}", "anchors and aliases are not accepted"),
        ("<<: {start: x}", "merge keys (<<) are not accepted"),
        ("[1, 2]: x", "a key must be a plain name"),
        ("extra: {name: x", "not valid YAML"),
        ("\tfast: true", "not valid YAML"),
        ("---\nfast: true", "a second YAML document"),
    ],
)
def test_yaml_that_is_refused(write, line: str, expected: str) -> None:
    found = problems(write(GOOD + line + "\n"))
    assert any(expected in problem and problem[0] in "567" for problem in found), found


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration: No such file") as caught:
        load(Root, tmp_path / "absent.yaml", ["steps=3"])
    assert len(caught.value.problems) == 1
    (tmp_path / "latin.yaml").write_bytes(b"start: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(Root, tmp_path / "latin.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected `key: value` lines"):
        load(Root, tmp_path / "list.yaml")


def test_overrides(write) -> None:
    path = write(GOOD + "sources: [{name: a}]\n")
    config = load(
        Root,
        path,
        [
            "optim.lr=1e-2",
            "optim.betas=[0.5, 0.6]",
            "sources.0.weight=3",
            "extra.name=b=c",
            "start='3e-4'",
            "steps=4",
            "steps=6",
        ],
    )
    assert (config.optim.lr, config.optim.betas, config.sources[0].weight) == (1e-2, [0.5, 0.6], 3)
    assert config.extra == Source(name="b=c") and config.start == "3e-4"
    assert config.steps == 6, "of equal overrides the last counts"
    assert load(Root, path, ["limit=null"]).limit is None
    assert load(Root, path, ["limit=x"]).limit == "x" and load(Root, path, ["limit=3"]).limit == 3


def test_a_changed_kind_refuses_the_keys_of_the_old_one(write) -> None:
    assert problems(write(GOOD), "optim.schedule.kind=linear") == [
        "4: optim.schedule.min_ratio: unknown key; accepted here: kind, warmup_steps"
    ]


def test_yaml_round_trip(write) -> None:
    path = write(
        GOOD + "sources: [{name: '3e-4'}, {name: 'no', weight: 2}, {name: ''}]\nextra: {name: \"a\\nb: #c\"}\n"
    )
    config = load(Root, path, ["limit='007'", "start='12:00:00'", "weights={a: 1e-9}"])
    assert load(Root, write(to_yaml(config))) == config
    assert yaml.safe_load(to_yaml(config))["optim"]["betas"] == [0.9, 0.98], "any YAML reader can read it"


def test_sections_are_strict_frozen_and_picklable(write) -> None:
    config = load(Root, write(GOOD))
    with pytest.raises(AttributeError):
        config.steps = 3  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        Source(name="x", weight=True)
    with pytest.raises(pydantic.ValidationError):
        Source(name="x", wait=1)  # type: ignore[call-arg]
    with pytest.raises(pydantic.ValidationError):
        Cosine(kind="cosine", min_ratio=float("nan"))
    assert pickle.loads(pickle.dumps(config)) == config


def test_diff(write) -> None:
    old = to_dict(load(Root, write(GOOD + "sources: [{name: a}]\n")))
    new = to_dict(
        load(Root, write(GOOD + "sources: [{name: b}, {name: c}]\n"), ["optim.lr=0.002", "optim.betas=[0, 0.98]"])
    )
    assert diff(old, new) == [
        "optim.lr: 0.0003 -> 0.002",
        "optim.betas: [0.9, 0.98] -> [0.0, 0.98]",
        "sources.0.name: a -> b",
        "sources.1.name: (absent) -> c",
        "sources.1.weight: (absent) -> 1",
    ]
    assert diff(new, new) == []
    assert diff({"a": 1, "b": 2}, {"a": 1}) == ["b: 2 -> (absent)"]


def arguments(path: Path, *argv: str) -> Root:
    return parse_args(Root, argv=argv, prog="train", description="Train.", default_config=path)


def test_command_line(write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(GOOD)
    other = tmp_path / "other.yaml"
    other.write_text(GOOD.replace("20", "40"))
    assert arguments(path).steps == 20
    config = arguments(path, "optim.lr=1", "--config", str(other), "fast=true")
    assert (config.steps, config.optim.lr, config.fast) == (40, 1.0, True)
    with pytest.raises(SystemExit) as stop:
        arguments(path, "--check", "steps=8")
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["steps"] == 8


@pytest.mark.parametrize("argv", [["stepps=3"], ["--chek"], ["--config", "/absent.yaml"]])
def test_a_wrong_command_line_ends_with_85_and_no_traceback(
    write, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        arguments(write(GOOD), *argv)
    assert stop.value.code == 85
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.strip() and "Traceback" not in captured.err


def test_one_section_of_a_file_whose_others_are_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("theirs:\n  anything: 1\nours:\n  inner:\n    lr: 3e-4\n    steps: fast\n")
    with pytest.raises(ConfigError, match=r"other.yaml:6: ours.inner.steps: got .?fast"):
        load_section(Step, path, "ours.inner")
    path.write_text("ours:\n  inner:\n    lr: 3e-4\n")
    assert load_section(Step, path, "ours.inner") == Step(lr=3e-4)
    with pytest.raises(ConfigError, match=r"ours\.outer: there is no such section"):
        load_section(Step, path, "ours.outer")
