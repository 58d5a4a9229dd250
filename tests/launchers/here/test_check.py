"""./run.sh check on this machine, and on one where much is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.here import check
from launchers.here.environment import ROOT, parse_requirement, requirements
from tests.launchers.conftest import write_tool


def run(**env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "launchers.here.check"]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=180)


def states(output: str) -> dict[str, str]:
    """name -> state, of the lines that begin a finding."""
    rows = [line.split() for line in output.splitlines() if line.startswith(("ok ", "warn ", "fail "))]
    return {row[1]: row[0] for row in rows}


def test_all_is_well_here(runs: Path) -> None:
    answer = run()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = states(answer.stdout)
    assert {one.name for one in requirements()} <= found.keys()
    assert [found[name] for name in ("python", "torch", "audio", "gloo", "runs")] == ["ok"] * 5
    assert found["numerics"] in ("ok", "warn")  # bf16 is wrong on some CPUs
    assert found["gpu"] == "warn"  # hidden by the fixture
    assert f"Baton can run here; {answer.stdout.count('warn ')} warn" in answer.stdout
    assert max(map(len, answer.stdout.splitlines())) <= 80
    assert not runs.exists()


def test_what_is_broken_is_said_with_what_to_do(runs: Path, tmp_path: Path) -> None:
    """A package of another version, a soundfile without its library, a gloo without a network, no place for runs."""
    fake = tmp_path / "fake"
    (fake / "rich-99.0.dist-info").mkdir(parents=True)
    (fake / "rich-99.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 99.0\n")
    (fake / "soundfile.py").write_text("raise OSError('sndfile library not found')\n")
    write_tool(tmp_path / "sbatch", "exit 0")
    (tmp_path / "file").touch()
    answer = run(
        PYTHONPATH=f"{fake}:{ROOT}",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        GLOO_SOCKET_IFNAME="nosuch0",
        BATON_RUNS=str(tmp_path / "file" / "runs"),
        CUDA_VISIBLE_DEVICES="7777",
    )
    assert answer.returncode == 1, answer.stdout + answer.stderr
    found = states(answer.stdout)
    failed = [name for name, state in found.items() if state == "fail"]
    assert failed == ["rich", "gpu", "audio", "gloo", "runs"], answer.stdout
    assert found["slurm"] == "warn"
    words = " ".join(answer.stdout.split())
    for expected in (
        "rich 99.0 >=14,<16",
        "-m pip install -c constraints.txt rich",
        "sndfile library not found -> ",
        "nosuch0",
        "file: cannot be written",
        "-> BATON_RUNS=/path/to/another/place",
        "1 here, torch sees none",
        "no controller answers",
        "Baton cannot run here: 5 fail",
    ):
        assert expected in words, answer.stdout
    assert max(map(len, answer.stdout.splitlines())) <= 80


def test_missing_packages_and_test_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [parse_requirement("rich>=1"), parse_requirement("no-such-package>=1")]
    tools = [*needed, parse_requirement("pytest>=1"), parse_requirement("no-such-tool>=2")]
    monkeypatch.setattr(check, "requirements", lambda *extras: tools if extras else needed)
    rich, absent, extra = check.packages()
    assert (rich.state, absent.state, extra.state) == ("ok", "fail", "warn")
    assert absent.words.split() == ["missing", ">=1"] and absent.advice.endswith("no-such-package")
    assert extra.words.endswith(": no-such-tool")


@pytest.mark.parametrize(
    "code, printed, errors, expected",
    [
        (0, "2.27.3", "", ("ok", "2.27.3 adds up over 2 GPUs")),
        (1, "", "Traceback\nRuntimeError: NCCL Error 2: system error", ("fail", "RuntimeError: NCCL Error 2")),
    ],
)
def test_gpus_and_their_sum(
    monkeypatch: pytest.MonkeyPatch, code: int, printed: str, errors: str, expected: tuple[str, str]
) -> None:
    first = '{"torch": "2.13.0", "cuda": "13.0", "gpus": ["NVIDIA H100, 80 GiB", "NVIDIA H100, 80 GiB"]}'
    answer = subprocess.CompletedProcess([], code, f"{first}\n{printed}", errors)
    monkeypatch.setattr(check, "_run", lambda program: answer)
    gpu, nccl = check.devices()
    assert (gpu.state, gpu.words) == ("ok", "2 x NVIDIA H100, 80 GiB; torch 2.13.0, CUDA 13.0")
    assert nccl.state == expected[0] and nccl.words.startswith(expected[1])


def test_kernels_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 nothing can run; in bf16 only runs that ask for it cannot."""
    found = [["gelu in bf16 is wrong", "bf16", "set this"], ["gelu in fp32 is wrong", "fp32", "set that"]]
    monkeypatch.setattr(check, "_run", lambda program: subprocess.CompletedProcess([], 0, json.dumps(found), ""))
    assert check.numerics() == [
        ("warn", "numerics", "gelu in bf16 is wrong", "set this"),
        ("fail", "numerics", "gelu in fp32 is wrong", "set that"),
    ]


def test_run_sh_offers_it() -> None:
    shown = subprocess.run([ROOT / "run.sh", "--help"], capture_output=True, text=True).stdout
    assert "./run.sh check" in shown and "75" in shown
    assert "exec python -P -m launchers.here.check" in (ROOT / "run.sh").read_text()
