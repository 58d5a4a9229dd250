"""What an environment must have, and that the three files that say so agree."""

from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement as Reference

from launchers.here.environment import ROOT, missing, parse_requirement, requirements

EXTRAS = ("gpu", "logging", "demo", "audio", "gigaspeech", "dev")


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize(
    "line", ["torch>=2.11,<2.14", "a-b_c==1.0", "x!=2.5,>=2", "plain", "deepspeed>=0.19.8,<0.20", "z<3"]
)
@pytest.mark.parametrize(
    "version", ["0.19.7", "0.19.8", "0.20", "1", "1.0.0", "2.10.9", "2.11", "2.13.0+cpu", "2.14.0", "2.5", "3.0"]
)
def test_versions_are_compared_as_packaging_compares_them(line: str, version: str) -> None:
    assert parse_requirement(line).accepts(version) == Reference(line).specifier.contains(version)


@pytest.mark.parametrize("line", ["torch~=2.1", "a[b]>=1", "x>=1; python_version<'3'", ""])
def test_a_requirement_that_cannot_be_read_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="cannot read the requirement"):
        parse_requirement(line)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [parse_requirement("rich>=1"), parse_requirement("rich>=99,<100"), parse_requirement("no-such-package>=1")]
    monkeypatch.setattr("launchers.here.environment.requirements", lambda *extras: wanted)
    too_old, absent = missing()
    assert too_old.startswith("rich ")
    assert "(>=99,<100 is needed)" in too_old
    assert absent == "no-such-package"


def test_the_exact_set_is_inside_the_ranges_and_complete() -> None:
    exact = constraints()
    for requirement in requirements("demo", "audio", "gigaspeech", "dev"):
        name = requirement.name.lower().replace("_", "-")
        assert name in exact, f"{name} is not in constraints.txt"
        assert requirement.accepts(exact[name]), f"{name}=={exact[name]} is outside the range of pyproject.toml"


def test_conda_asks_for_the_same_ranges() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = conda["dependencies"]
    assert python == "python>=3.11,<3.13"
    assert pip == "pip"
    assert [parse_requirement(line) for line in packages["pip"]] == requirements("dev")


def test_every_range_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("]")[0].strip().splitlines()
    assert [line for line in lines if "#" not in line] == []


def test_the_image_installs_the_exact_set() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in text.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / word).exists() for word in copied)
    assert "constraints.txt" in copied
    flash = next(line for line in text.splitlines() if "flash-attn" in line and "install" in line)
    assert str(next(r for r in requirements("gpu"))) and "'flash-attn>=2.8,<3'" in flash


def test_what_git_and_docker_leave_out() -> None:
    for name in (".gitignore", ".dockerignore"):
        assert ".venv.lock" in Path(ROOT / name).read_text().splitlines()
