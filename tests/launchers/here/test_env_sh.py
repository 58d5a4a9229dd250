"""slurm/env.sh, run.sh: what a .sub file finds on this machine and in a (pretended) SLURM job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.here.environment import ROOT
from tests.launchers.conftest import write_tool


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A clean environment with the packages of this interpreter."""
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "BATON_RUNS": str(tmp_path / "runs")}
    return env | {"VIRTUAL_ENV": sys.prefix, "CUDA_VISIBLE_DEVICES": ""}


def run_script(text: str, env: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    script = f"source slurm/env.sh\n{text}\n"
    command = ["bash", "-c", script, "script", *words]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_one_task_is_the_command_itself(environment: dict[str, str]) -> None:
    answer = run_script("srun --label bash -c 'echo $RANK:$OMP_NUM_THREADS:$SLURM_NTASKS:$1; exit 75' x \"$@\"", {
        **environment, "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "RANK": "3", "BATON_LOCAL_TASKS": "1",
    }, "a b")  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    assert (answer.stdout, answer.returncode) == (f":{cores}::a b\n", 75), answer.stderr


def test_two_tasks_are_ranks_of_torchrun(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(
        "import os, sys\n"
        "place = [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS')]\n"
        "os.write(1, (' '.join([*place, *sys.argv[1:]]) + '\\n').encode())\n"
    )
    command = f"PYTHONPATH='{tmp_path}' srun python -m ranks \"$@\""
    answer = run_script(command, {**environment, "BATON_LOCAL_TASKS": "2", "OMP_NUM_THREADS": "1"}, "k=v w", "--check")
    assert sorted(answer.stdout.splitlines()) == ["0 2 1 k=v w --check", "1 2 1 k=v w --check"], answer.stderr


def test_in_a_slurm_job_srun_is_slurms(environment: dict[str, str], tmp_path: Path) -> None:
    write_tool(tmp_path / "scontrol", '[ "$*" = "show hostnames n[3-4]" ] && printf "n3\\nn4\\n"')
    write_tool(tmp_path / "srun", 'echo "real srun: $*"; env | grep -E "^(MASTER|OMP|SRUN|SLURM)" | sort')
    job = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "n[3-4]", "SLURM_CPUS_PER_TASK": "6", "SLURM_NTASKS": "4"}
    left_behind = {"SLURM_CPU_BIND": "quiet", "SLURM_CPU_BIND_LIST": "0x1", "MASTER_ADDR": "elsewhere", "RANK": "1"}
    answer = run_script('srun python x "$@"', environment | job | left_behind, "k=v")
    assert answer.stdout.splitlines() == [
        "real srun: python x k=v",
        "MASTER_ADDR=n3",
        f"MASTER_PORT={15000 + 1234567 % 15000}",
        "OMP_NUM_THREADS=6",
        "SLURM_CPUS_PER_TASK=6",
        "SLURM_JOB_ID=1234567",
        "SLURM_JOB_NODELIST=n[3-4]",
        "SLURM_NTASKS=4",
        "SRUN_CPUS_PER_TASK=6",
    ], answer.stderr


@pytest.mark.parametrize("marker, code", [("DONE", 0), ("STOP", 75), ("FAILED", 75)])
def test_a_link_with_nothing_to_do_does_nothing(environment: dict[str, str], marker: str, code: int) -> None:
    run = Path(environment["BATON_RUNS"]) / "my run"
    run.mkdir(parents=True)
    assert run_script("echo trains", {**environment, "BATON_LINK": "2"}, "run.name=my run").stdout == "trains\n"
    (run / marker).write_text("because\n")
    answer = run_script("echo trains", {**environment, "BATON_LINK": "2"}, "run.name=my run", "a=b")
    assert "trains" not in answer.stdout
    assert str(run) in answer.stdout
    assert answer.returncode == code


def test_the_shell_outlives_a_stop_signal(environment: dict[str, str]) -> None:
    command = 'srun python -c "import time; time.sleep(0.5)"\necho after'
    process = subprocess.Popen(
        ["bash", "-c", f"source slurm/env.sh\necho ready\n{command}"],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=30)[0] == "after\n"


def test_a_job_never_installs(tmp_path: Path, environment: dict[str, str]) -> None:
    del environment["VIRTUAL_ENV"]
    copy = tmp_path / "repo"
    for name in ("launchers/bootstrap.sh", "slurm/env.sh", "constraints.txt"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    answer = subprocess.run(
        ["bash", "-c", "source slurm/env.sh; echo went on"], env=environment, cwd=copy, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert "type ./launch.sh --help on the login node first" in answer.stderr
    assert not (copy / ".venv").exists()


def test_run_sh_starts_the_recipe_with_its_switches(environment: dict[str, str], tmp_path: Path) -> None:
    """In a copy of the shell part, with a recipe that prints what it got."""
    copy = tmp_path / "a copy"
    for name in (
        "run.sh",
        "launchers",
        "slurm",
        "core/rundir",
        "core/__init__.py",
        "constraints.txt",
        "pyproject.toml",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", ROOT / name, copy / name], check=True)
    recipe = copy / "recipes" / "mine"
    recipe.mkdir(parents=True)
    (recipe / "train.py").write_text("import os, sys; print(os.getcwd(), *sys.argv[1:], sep='|'); sys.exit(75)")
    (tmp_path / "my.yaml").touch()
    for folder in ("recipes/mine", "recipes/mine/", str(recipe)):
        answer = subprocess.run(
            [copy / "run.sh", folder, "--config", "my.yaml", "a=b c"],
            env={**environment, "DEBUG": "1", "PROFILE": "1"}, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert answer.stdout == f"{copy}|--config|{tmp_path}/my.yaml|a=b c|run.debug=true|run.profile=true\n", (
            answer.stderr
        )
        assert answer.returncode == 75
    unknown = subprocess.run([copy / "run.sh", "recipes/other"], env=environment, capture_output=True, text=True)
    assert unknown.returncode == 85
    assert "recipes/mine" in unknown.stderr
    bad = subprocess.run([copy / "run.sh", "x"], env={**environment, "NPROC": "two"}, capture_output=True, text=True)
    assert "NPROC=two" in bad.stderr
