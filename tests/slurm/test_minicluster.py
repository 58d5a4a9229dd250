"""slurm/minicluster itself: side by side, broken and mended node by node, and gone without a trace."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launchers.here.environment import ROOT
from slurm.virtual.cluster import Cluster
from tests.slurm.conftest import lacking

MINICLUSTER = str(ROOT / "slurm/minicluster")


def minicluster(*words: str | Path, code: int = 0) -> str:
    answer = subprocess.run([MINICLUSTER, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert answer.returncode == code, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def inside(folder: Path, *words: str) -> str:
    return minicluster("shell", "--dir", folder, *words)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a cluster can be: a short path that is not there yet."""
    path = Path(tempfile.mkdtemp(prefix="mc-", dir="/tmp"))
    path.rmdir()
    yield path
    if path.exists():
        minicluster("down", "--dir", path)


def processes_of(folder: Path) -> list[str]:
    """The command lines that name the cluster's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{folder}/" in line:
            found.append(line)
    return found


def wait_for_state(folder: Path, node: str, state: str) -> None:
    deadline = time.monotonic() + 60
    while (found := inside(folder, "sinfo", "-h", "-n", node, "-p", "main", "-o", "%T").strip()) != state:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def listening(port: str) -> set[str]:
    """The addresses at which somebody on this machine listens on a port, as the kernel writes them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == int(port)}


def test_slurmctld_is_not_to_be_reached_from_elsewhere(folder: Path) -> None:
    minicluster("up", "--dir", folder, "--nodes", "1", "--gpus", "0")
    if not Cluster.at(folder).isolation:
        lacking("slurmctld has no hosts file of its own")
    facts = dict(line.split("=", 1) for line in (folder / "slurm.conf").read_text().splitlines())
    address = facts["SlurmctldHost"].rpartition("(")[2].rstrip(")")
    assert listening(facts["SlurmctldPort"]) == {socket.inet_aton(address)[::-1].hex().upper()}
    assert address.startswith(("127.", "198.18."))


def test_up_break_mend_and_down(folder: Path) -> None:
    minicluster("up", "--dir", folder, "--nodes", "2", "--gpus", "3")
    assert "already" in minicluster("up", "--dir", folder, code=1)
    gpus = inside(
        folder, "srun", "--nodes=2", "--gpus-per-node=3", "bash", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    )
    assert sorted(gpus.splitlines()) == ["n1 0,1,2", "n2 0,1,2"]
    minicluster("kill", "--dir", folder, "n2")
    assert "n2 does not run" in minicluster("kill", "--dir", folder, "n2", code=1)
    inside(folder, "scontrol", "update", "nodename=n2", "state=down", "reason=test")
    minicluster("restart", "--dir", folder, "n2")
    wait_for_state(folder, "n2", "idle")
    minicluster("restart", "--dir", folder, "slurmctld")
    wait_for_state(folder, "n1", "idle")
    assert "n7: the daemons are n1, n2, slurmctld, munged" in minicluster("kill", "--dir", folder, "n7", code=1)
    assert len(processes_of(folder)) >= 4
    minicluster("down", "--dir", folder)
    assert processes_of(folder) == []
    assert not folder.exists()
    assert "there is no cluster" in minicluster("down", "--dir", folder, code=1)


def test_two_side_by_side(folder: Path) -> None:
    other = folder.with_name(folder.name + "b")
    minicluster("up", "--dir", folder, "--nodes", "1", "--gpus", "0")
    try:
        minicluster("up", "--dir", other, "--nodes", "2", "--gpus", "0")
        assert [inside(one, "sinfo", "-h", "-p", "main", "-o", "%D").strip() for one in (folder, other)] == ["1", "2"]
        minicluster("down", "--dir", folder)
        assert sorted(inside(other, "srun", "--nodes=2", "printenv", "SLURMD_NODENAME").split()) == ["n1", "n2"]
    finally:
        minicluster("down", "--dir", other)


def test_a_folder_that_will_not_do(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine").touch()
    assert "not empty" in minicluster("up", "--dir", folder, code=1)
    (folder / "mine").unlink()
    folder.rmdir()
    assert "at most" in minicluster("up", "--dir", folder / ("x" * 80), code=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_as_an_ordinary_user(folder: Path) -> None:
    """The same cluster, but for the network."""
    home = Path(tempfile.mkdtemp(prefix="mc-", dir="/tmp"))
    os.chown(home, 65534, 65534)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", f"HOME={home}", MINICLUSTER]
    try:
        for words in (["up", "--nodes", "2"], ["shell"], ["down"]):
            command = ["srun", "--nodes=2", "bash", "-c", "echo $SLURMD_NODENAME; id -u"] if words == ["shell"] else []
            answer = subprocess.run(
                [*user, words[0], "--dir", str(home / "c"), *words[1:], *command],
                cwd="/", capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert answer.returncode == 0, answer.stderr
            if command:
                assert sorted(answer.stdout.split()) == ["65534", "65534", "n1", "n2"]
    finally:
        subprocess.run(["rm", "-rf", home], check=True)
