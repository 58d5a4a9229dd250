"""Pipelines, sweeps and an interactive node on a real SLURM."""

import pytest

from core.rundir.files import DONE
from tests.slurm.conftest import Slurm


def test_a_pipeline_runs_to_its_end_through_a_time_limit(slurm: Slurm) -> None:
    """The second of three stages is cut by its limit: the third waits for its DONE, whatever its links did."""
    sub = slurm.sub()
    sub.write_text(sub.read_text().replace("--signal=USR1@60", "--signal=B:USR1@60"))
    slow = '["fake.step_s=0.2", "fake.steps_per_link=1000", "fake.total=200"]'
    stages = ["{sub: fake.sub, name: first, links: 2}", f"{{sub: fake.sub, name: second, links: 2, settings: {slow}}}"]
    stages.append('{sub: fake.sub, name: third, settings: ["fake.total=3", "fake.print={second}"]}')
    (slurm.folder / "three.yaml").write_text("stages:\n" + "".join(f"  - {stage}\n" for stage in stages))
    slurm.launch(slurm.folder / "three.yaml")
    slurm.wait_for_starts(1, "three.second")
    job = slurm.links("three.second")[0].job_id or ""
    slurm.shorten(job, 2)
    slurm.wait_until_over("three.third")
    assert slurm.state(job) == "TIMEOUT"
    assert [link.exit_code for link in slurm.links("three.second")] == [75, 0]
    assert all((slurm.runs / f"three.{name}" / DONE).exists() for name in ("first", "second", "third"))
    assert str(slurm.runs / "three.second") in slurm.log("three.third")


def test_a_stage_does_not_begin_after_one_that_failed(slurm: Slurm) -> None:
    slurm.sub()
    stages = [
        '{sub: fake.sub, name: first, settings: ["fake.exit=85", "fake.is_silent=1"]}',
        "{sub: fake.sub, name: second}",
    ]
    (slurm.folder / "two.yaml").write_text("stages:\n" + "".join(f"  - {stage}\n" for stage in stages))
    slurm.launch(slurm.folder / "two.yaml")
    slurm.wait_until_over("two.second")
    assert slurm.events("started", "two.second") == []
    assert "two.first" in slurm.launch("status", "two.second")


def test_a_sweep_ends_in_one_comparison(slurm: Slurm) -> None:
    slurm.launch("sweep", "-n2", slurm.sub(), "fake.total=6,8", "fake.print=a,b")
    comparison = slurm.runs / "fake_sweep" / "comparison.png"
    slurm.wait_for(lambda: comparison.exists() and not slurm.queue(), "the comparison", run="fake_sweep-4")
    runs = [slurm.runs / f"fake_sweep-{number}" for number in (1, 2, 3, 4)]
    assert all((run / DONE).exists() for run in runs)
    assert [slurm.links(run.name)[1].step for run in runs] == [6, 6, 8, 8]
    said = slurm.launch("compare", "fake_sweep")
    assert all(run.name in said for run in runs)


def test_an_interactive_node_and_what_run_sh_finds_there(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = slurm.folder / "shell"
    shell.write_text("#!/bin/bash\necho $(hostname) $SLURM_JOB_NUM_NODES $(python -m launchers.here.machine)\n")
    shell.chmod(0o700)
    monkeypatch.setenv("SHELL", str(shell))
    said = slurm.ask("slurm/get_interactive_node.sh", "-N", "2", "-G", "3", "-t", "00:05:00", "-p", "urgent")
    assert said.split() == [said.split()[0], "2", "3"] and said.split()[0] in slurm.cluster.nodes
    slurm.wait_for(lambda: slurm.queue() == [], "the nodes to be given back")
