"""The bootstrap without its downloads: which Python, which environment, one at a time, resumed after a kill."""

import fcntl
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launchers.here import bootstrap
from launchers.here.environment import ROOT
from tests.launchers.conftest import write_tool

FILES = ("launch.sh", "launchers", "core/__init__.py", "core/rundir", "constraints.txt", "pyproject.toml")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout, as far as the bootstrap sees it, in a path with spaces."""
    folder = tmp_path / "a fresh clone"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", ROOT / name, folder / name], check=True)
    return folder


def launch(clone: Path, tools: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """./launch.sh status, with nothing on PATH but `tools`."""
    env = {"PATH": str(tools), "HOME": str(clone.parent), **settings}
    command = ["/bin/bash", str(clone / "launch.sh"), "status"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def fake_python(path: Path, version: str, *, has_venv: bool = True) -> Path:
    """A Python as far as the bootstrap looks at it; asked to make the environment, it says so and fails."""
    return write_tool(
        path,
        f"""case "$*" in
            *version_info*) echo {version} ;;
            *ensurepip*) exit {0 if has_venv else 1} ;;
            *launchers.here.bootstrap*) echo "asked {path.name} in $PYTHONPATH"; exit 1 ;;
            *) exit 1 ;;
        esac""",
    )


def venv_of_this_python(path: Path) -> Path:
    """An environment that has every package: this interpreter's, under another name."""
    (path / "bin").mkdir(parents=True)
    write_tool(path / "bin" / "python", f'exec "{sys.executable}" "$@"')
    return path


def test_no_python_at_all(clone: Path, tools: Path) -> None:
    answer = launch(clone, tools)
    assert answer.returncode == 1
    assert "Python 3.11 or 3.12 is needed; found none" in answer.stderr
    for words in ("sudo apt install python3", "environment.yml", "BATON_PYTHON"):
        assert words in answer.stderr


def test_only_pythons_that_are_too_old_too_new_or_broken(clone: Path, tools: Path) -> None:
    fake_python(tools / "python3", "3.9.2")
    fake_python(tools / "python3.12", "3.13.0")
    write_tool(tools / "python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    answer = launch(clone, tools)
    assert answer.returncode == 1
    assert "found only: python3 is 3.9.2, python3.12 is 3.13.0" in answer.stderr
    assert "command not found" not in answer.stderr


def test_a_python_without_venv(clone: Path, tools: Path) -> None:
    fake_python(tools / "python3", "3.11.2", has_venv=False)
    answer = launch(clone, tools)
    assert answer.returncode == 1
    assert "sudo apt install python3.11-venv" in answer.stderr


def test_the_first_python_that_will_do_makes_the_environment(clone: Path, tools: Path) -> None:
    fake_python(tools / "python3", "3.11.2", has_venv=False)
    fake_python(tools / "python3.12", "3.12.1")
    fake_python(tools / "python3.11", "3.11.9")
    assert launch(clone, tools).stdout == f"asked python3.12 in {clone}\n"
    named = fake_python(tools / "my python", "3.11.1")
    assert launch(clone, tools, BATON_PYTHON=str(named)).stdout == f"asked my python in {clone}\n"


@pytest.mark.parametrize("name", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_with_the_packages_is_used_as_it_is(clone: Path, tools: Path, name: str) -> None:
    active = venv_of_this_python(clone.parent / "an active one")
    answer = launch(clone, tools, **{name: str(active)})
    assert answer.returncode == 0, answer.stderr
    assert "no run yet" in answer.stdout
    assert sorted(path.name for path in active.rglob("*")) == ["bin", "python"]
    assert not (clone / ".venv").exists()


def test_an_active_environment_without_them_is_left_alone(clone: Path, tools: Path) -> None:
    active = venv_of_this_python(clone.parent / "an active one")
    pyproject = clone / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"rich>=14,<16"', '"rich>=99"'))
    fake_python(tools / "python3", "3.11.2")
    answer = launch(clone, tools, VIRTUAL_ENV=str(active))
    assert f"the active environment {active} lacks rich" in answer.stderr
    assert "it is left as it is" in answer.stderr
    assert answer.stdout == f"asked python3 in {clone}\n"
    assert sorted(path.name for path in active.rglob("*")) == ["bin", "python"]


def test_a_ready_venv_starts_at_once_and_a_stale_one_is_completed(clone: Path, tools: Path) -> None:
    venv = venv_of_this_python(clone / ".venv")
    (venv / "baton-made").touch()
    shutil.copy(clone / "constraints.txt", venv / "baton-stamp")
    began = time.monotonic()
    answer = launch(clone, tools)
    assert answer.returncode == 0, answer.stderr
    assert time.monotonic() - began < 5
    with (clone / "constraints.txt").open("a") as file:
        file.write("new-package==1\n")
    fake_python(tools / "python3", "3.11.2")
    assert launch(clone, tools).stdout == f"asked python3 in {clone}\n"


def test_a_venv_of_the_user_is_used_if_it_is_complete(clone: Path, tools: Path) -> None:
    venv_of_this_python(clone / ".venv")
    answer = launch(clone, tools)
    assert answer.returncode == 0, answer.stderr
    assert not (clone / ".venv" / "baton-made").exists()


def test_site_settings_are_read_first(clone: Path, tools: Path) -> None:
    active = venv_of_this_python(clone.parent / "of the site")
    (clone / "slurm").mkdir()
    (clone / "slurm" / "cluster.sh").write_text(f"export VIRTUAL_ENV='{active}' BATON_RUNS='{clone}/elsewhere'\n")
    (clone / "elsewhere" / "my_run").mkdir(parents=True)
    (clone / "elsewhere" / "my_run" / "chain.jsonl").touch()
    assert "my_run" in launch(clone, tools).stdout


FAKE_START = """
import sys, time
from pathlib import Path
from launchers.here import bootstrap
from launchers.here.bootstrap import VENV, PYTHON, MADE_BY_US

def make_venv():
    PYTHON.parent.mkdir(parents=True, exist_ok=True)
    MADE_BY_US.touch()
    PYTHON.touch(mode=0o755)

def install_packages(*, lock, on_cpu):
    with Path("installs").open("a") as file:
        file.write("begun\\n")
    time.sleep(float(sys.argv[1]))
    with Path("installs").open("a") as file:
        file.write("done\\n")

bootstrap.make_venv, bootstrap.install_packages = make_venv, install_packages
sys.exit(bootstrap.main())
"""


def fake_start(clone: Path, seconds: float) -> "subprocess.Popen[str]":
    """bootstrap.main with an installation that only takes its time."""
    env = {**os.environ, "PYTHONPATH": str(clone), "BATON_TORCH": "cpu"}
    command = [sys.executable, "-c", FAKE_START, str(seconds)]
    return subprocess.Popen(command, cwd=clone, env=env, stderr=subprocess.PIPE, text=True)


def wait_for_installs(clone: Path, count: int) -> None:
    deadline = time.monotonic() + 20
    while not (clone / "installs").exists() or len((clone / "installs").read_text().split()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_starts_at_once_install_once(clone: Path) -> None:
    first = fake_start(clone, 1.0)
    wait_for_installs(clone, 1)
    second = fake_start(clone, 1.0)
    said = [process.communicate(timeout=30)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert f"another start (process {first.pid}) is making the environment; waiting" in said[1]
    assert (clone / "installs").read_text() == "begun\ndone\n"
    assert (clone / ".venv" / "baton-stamp").read_bytes() == (clone / "constraints.txt").read_bytes()


def test_a_killed_start_leaves_no_stamp_and_is_taken_up(clone: Path) -> None:
    first = fake_start(clone, 30)
    wait_for_installs(clone, 1)
    waiting = fake_start(clone, 0)
    time.sleep(0.3)
    first.kill()
    first.communicate()
    assert not (clone / ".venv" / "baton-stamp").exists()
    said = waiting.communicate(timeout=30)[1]
    assert waiting.returncode == 0
    assert "going on with" in said
    assert (clone / ".venv" / "baton-stamp").exists()


def test_the_lock_lasts_as_long_as_an_orphaned_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "LOCK", tmp_path / "lock")
    with bootstrap.locked() as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with (tmp_path / "lock").open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        orphan.communicate(b"\n")
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def install(site: Path, name: str, *, record: str | None) -> None:
    """A package of one file of 5 bytes, as pip leaves it; `record`: its RECORD, None for a pip killed before that."""
    (site / f"{name}.py").write_text("x = 1")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    if record is not None:
        (info / "RECORD").write_text(textwrap.dedent(record))


def test_half_installed_packages_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    (site / "~ld").mkdir(parents=True)
    install(site, "whole", record="whole.py,sha256=x,5\nwhole-1.0.dist-info/RECORD,,\n__pycache__/whole.pyc,,\n")
    install(site, "missing", record="missing.py,sha256=x,5\nother.py,sha256=x,7\n")
    install(site, "short", record="short.py,sha256=x,9\n")
    install(site, "torn", record="torn.py,sha2")
    install(site, "unrecorded", record=None)
    install(site, "torchaudio", record="torchaudio.py,sha256=x,5\ntorchaudio/lib/libx.so,sha256=x,100\n")
    bootstrap.repair()
    assert sorted(path.name for path in site.glob("*-info")) == ["torchaudio-1.0.dist-info", "whole-1.0.dist-info"]
    assert not (site / "~ld").exists()


def test_a_venv_of_the_user_is_never_installed_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(bootstrap, "MADE_BY_US", tmp_path / ".venv" / "baton-made")
    monkeypatch.setattr(bootstrap, "LOCK", tmp_path / "lock")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    with pytest.raises(bootstrap.BootstrapError, match=r"mv \.venv \.venv\.mine"):
        bootstrap.prepare()
    assert [path.name for path in (tmp_path / ".venv").rglob("*")] == ["bin"]


def test_the_build_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(bootstrap, "slurm_offers_gpus", lambda: False)
    monkeypatch.delenv("BATON_TORCH", raising=False)
    assert bootstrap.wants_cpu_build()
    monkeypatch.setattr(bootstrap, "slurm_offers_gpus", lambda: True)  # a login node without a GPU of its own
    assert not bootstrap.wants_cpu_build()
    monkeypatch.setenv("BATON_TORCH", "cpu")
    assert bootstrap.wants_cpu_build()
    monkeypatch.setenv("BATON_TORCH", "rocm")
    with pytest.raises(bootstrap.BootstrapError, match="expected cpu or cuda"):
        bootstrap.wants_cpu_build()
