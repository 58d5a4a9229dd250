"""What a machine offers, on machines made of shell scripts."""

import time
from pathlib import Path

import pytest

from launchers.chain.submission import local_tasks
from launchers.here import machine
from launchers.slurm.header import Header
from tests.launchers.conftest import write_tool


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    return tmp_path


def test_slurm_answers_only_if_its_controller_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tool(path / "sbatch", "exit 0")
    write_tool(path / "scontrol", "echo 'Slurmctld(primary) at head is DOWN'; exit 1")
    assert not machine.slurm_answers()
    write_tool(path / "scontrol", "echo 'Slurmctld(primary) at head is UP'")
    assert machine.slurm_answers()
    (path / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(path))
    assert not machine.slurm_answers()


def test_a_controller_that_hangs_is_no_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ANSWER_TIMEOUT_S", 0.2)
    write_tool(path / "sbatch", "exit 0")
    write_tool(path / "scontrol", "exec sleep 30")
    began = time.monotonic()
    assert not machine.slurm_answers()
    assert time.monotonic() - began < 5


def test_gpus_are_counted_or_taken_from_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tool(path / "nvidia-smi", "echo 'GPU 0: NVIDIA H100'; echo 'GPU 1: NVIDIA H100'; echo '  MIG 1g'")
    assert machine.visible_gpus() == ["0", "1"]
    assert machine.has_nvidia_gpu()
    for request, gpus in (("3,5", ["3", "5"]), ("", []), ("-1", []), ("GPU-ab12", ["GPU-ab12"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", request)
        assert machine.visible_gpus() == gpus


@pytest.mark.parametrize(
    "options, gpus, cores, tasks, says",
    [
        ({}, 0, 2, 1, ""),
        ({"ntasks": "4"}, 0, 2, 2, "asks for 4 ranks; this machine has 2 cores: 2 started"),
        ({"ntasks-per-node": "4", "gpus-per-node": "4"}, 2, 16, 2, "this machine has 2 GPUs: 2 started"),
        ({"ntasks-per-node": "4", "gpus-per-node": "4", "nodes": "2"}, 8, 16, 8, ""),
        ({"ntasks-per-node": "2", "gpus-per-node": "2"}, 0, 16, 2, "no GPU here"),
        ({"ntasks-per-node": "8", "gpus-per-node": "8"}, 1, 1, 1, "this machine has 1 GPU: 1 started"),
    ],
)
def test_ranks_are_cut_to_the_machine_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], gpus: int, cores: int, tasks: int, says: str
) -> None:
    monkeypatch.setattr("launchers.chain.submission.visible_gpus", lambda: list(map(str, range(gpus))))
    monkeypatch.setattr("launchers.chain.submission.num_cores", lambda: cores)
    found, words = local_tasks(Header(Path("job.sub"), {"job-name": "x", **options}))
    assert found == tasks
    assert (says in words) if says else words == ""
