"""The preflight on a real SLURM: every fault that it claims to find, brought about on real nodes."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.conftest import Slurm, lacking
from tests.small_disk import small_disk


def preflight(slurm: Slurm, sub: Path, *words: str | int, code: int = 85) -> dict[str, str]:
    """The findings that are a NO, by what was checked, after an exit code."""
    said = slurm.launch("preflight", *words, sub, code=code)
    rows = re.findall(r"^ (\S.*?) {2,}(ok|NO) +(.*(?:\n {8,}\S.*)*)", said, re.MULTILINE)
    assert [what for what, _, _ in rows][:2] == ["header", "python"], said
    return {what: unfolded(words) for what, state, words in rows if state == "NO"}


def unfolded(words: str) -> str:
    """Without spaces: a path may be folded anywhere."""
    return "".join(words.split())


@contextmanager
def own_disk(slurm: Slurm, node: str, folder: Path) -> Iterator[None]:
    """A node has a file system of its own where the others have `folder`."""

    def there(*words: str) -> None:
        slurm.ask("srun", f"--nodelist={node}", "--nodes=1", *words)

    if not slurm.cluster.isolation:
        lacking("the nodes have no file systems of their own")
    there("mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder))
    try:
        there("cp", "-r", f"{folder}.of_{node}/.", str(folder))
        yield
    finally:
        there("umount", str(folder))


def on_node(node: str, *, more: str = "") -> str:
    return f"#SBATCH --nodelist={node}\n{more}"


def test_nodes_that_are_well_and_one_that_is_dead(slurm: Slurm) -> None:
    sub = slurm.sub(nodes=2, more=on_node("n3,n4"))
    assert preflight(slurm, sub, code=0) == {}
    slurm.cluster.kill("n4")
    slurm.ask("scontrol", "update", "nodename=n4", "state=down", "reason=fire")
    (nodes,) = preflight(slurm, sub, "--wait", 5).items()
    assert nodes[0] == "nodes" and "n4" in nodes[1]


def test_a_node_with_other_packages_without_the_data_and_deaf_to_the_signal(slurm: Slurm) -> None:
    """On n4 another submitit comes first, and what the configuration names is not there; nobody hears USR2."""
    local, other = slurm.folder / "local", slurm.folder / "local.of_n4"
    package = other / "submitit-0.0.1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: submitit\nVersion: 0.0.1\n")
    local.mkdir()
    (local / "cuts.jsonl").touch()
    sub = slurm.sub(nodes=2, more=on_node("n3,n4"))
    text = sub.read_text().replace("--signal=USR1@60", "--signal=USR2@60")
    check = f"[ $# -lt 2 ] || {{ echo 'data: {{train: {local}/cuts.jsonl}}'; exit; }} # python -m recipes."
    start = f"export PYTHONPATH=$PYTHONPATH:{shlex.quote(str(local))}\nsrun env --block-signal=USR2 python"
    sub.write_text(text.replace("source", f"{check}\nsource").replace("srun python", start))
    with own_disk(slurm, "n4", local):
        found = preflight(slurm, sub)
    assert found.keys() == {"node paths", "versions", "signals"}
    assert found["node paths"] == unfolded(f"there is no data.train: {local}/cuts.jsonl on n4")
    assert re.fullmatch(r"submititis[1-9][\d.]*hereand0\.0\.1onn4", found["versions"])
    assert found["signals"] == unfolded("a stop signal was sent and did not reach rank 0 on n3, rank 1 on n4")


def test_no_gpus_and_a_rank_that_dies(slurm: Slurm) -> None:
    sub = slurm.sub(tasks=2, more=on_node("n3", more="#SBATCH --gpus-per-node=1\n"))
    dies = "bash -c '[ $SLURM_PROCID = 0 ] || exec cat /no/libcudart.so; exec \"$@\"' x python"
    sub.write_text(sub.read_text().replace("srun python", f"srun {dies}"))
    found = preflight(slurm, sub)
    assert found.keys() == {"ranks", "job"} | found.keys() & {"gpus", "collectives"}
    assert unfolded("of 2 ranks these did not start: ") in found["ranks"]
    assert unfolded("/no/libcudart.so: No such file") in found["job"]
    sub.write_text(sub.read_text().replace(dies, "python"))
    blind = "1 a node are asked for, but torch sees none at rank 0 on n3, rank 1 on n3"
    assert preflight(slurm, sub) == {"gpus": unfolded(blind)}


def test_a_place_for_runs_that_nodes_do_not_see_or_that_is_full(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not slurm.cluster.isolation:
        lacking("the nodes have no file systems of their own")
    with small_disk(tmp_path / "disk", size="8m") as disk:  # n3 was up before it, and has only the directory
        monkeypatch.setenv("BATON_RUNS", str(disk))
        found = preflight(slurm, slurm.sub(more=on_node("n3")))
        assert found.keys() == {"runs", "ranks", "job"}
        assert unfolded(f"its node could not write to {disk}; runs must be where all nodes see") in found["job"]
        slurm.cluster.restart("n4")
        try:
            slurm.wait_for(lambda: "idle" in slurm.ask("sinfo", "-h", "-n", "n4", "-p", "main", "-o", "%T"), "n4")
            found = preflight(slurm, slurm.sub(more=on_node("n4")))
            assert found.keys() == {"runs", "node disk"}
            assert found["runs"].startswith(unfolded(f"{disk}, 0 GiB free: make room"))
            assert found["node disk"] == unfolded("0 GiB free for runs, as n4 sees it; at least 5 are wanted")
            (disk / "ballast").write_bytes(bytes(8 * 2**20 - 4096))
            found = preflight(slurm, slurm.sub(more=on_node("n4")))
            assert found["nodes"] == unfolded(f"not checked, as {disk} cannot be written: No space left on device")
        finally:
            slurm.cluster.restart("n4")  # it holds the disk
