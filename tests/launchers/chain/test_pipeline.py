"""Pipelines: stages one after another, each when the one before is done."""

from pathlib import Path

import pytest

from core.rundir.files import DONE
from core.rundir.ledger import read_links
from tests.launchers.conftest import FakeCluster, Launcher

THREE = """\
name: three
stages:
  - {sub: a folder/fake.sub, name: one, settings: ["fake.total=5"]}
  - {sub: a folder/fake.sub, name: two, links: 3, settings: ["fake.total=8", "fake.print=from {one}/x"]}
  - {sub: a folder/fake.sub, settings: ["fake.total=2"]}
"""


@pytest.fixture
def pipeline(tmp_path: Path, sub: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(THREE)
    return path


def test_here_the_stages_follow_one_another(launcher: Launcher, runs: Path, pipeline: Path) -> None:
    answer = launcher(pipeline)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    names = ("three.one", "three.two", "three.fake")
    assert {name: [link.step for link in read_links(runs / name)] for name in names} == {
        "three.one": [5],
        "three.two": [5, 8],
        "three.fake": [2],
    }
    assert f"from {runs}/three.one/x" in answer.stdout
    again = launcher(pipeline)
    assert again.returncode == 0
    assert again.stdout.count("is done: run three.") == 3


def test_settings_of_the_pipeline_are_those_of_every_stage(launcher: Launcher, runs: Path, pipeline: Path) -> None:
    without = THREE.replace('settings: ["fake.total=5"]', "links: 1").replace(', settings: ["fake.total=2"]', "")
    pipeline.write_text(f'settings: ["fake.total=4"]\n{without}')
    answer = launcher(pipeline)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    steps = [read_links(runs / f"three.{name}")[-1].step for name in ("one", "two", "fake")]
    assert steps == [4, 8, 4], "the second sets its own"


def test_a_stage_that_is_not_done_stops_it_and_the_same_command_goes_on(
    launcher: Launcher, runs: Path, pipeline: Path
) -> None:
    pipeline.write_text(THREE.replace("fake.total=8", "fake.total=18"))
    stopped = launcher(pipeline)
    assert stopped.returncode == 75
    assert "three.two is not done; the same command goes on there" in stopped.stdout
    assert not (runs / "three.fake").exists()
    assert launcher(pipeline).returncode == 0
    assert [link.step for link in read_links(runs / "three.two")] == [5, 10, 15, 18]
    assert (runs / "three.fake" / DONE).exists()


def test_on_slurm_everything_is_queued_behind_gates(
    cluster: FakeCluster, launcher: Launcher, runs: Path, pipeline: Path
) -> None:
    dry = launcher("--dry-run", pipeline)
    assert dry.returncode == 0, dry.stderr
    assert not runs.exists()
    answer = launcher(pipeline)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    links = [link for name in ("one", "two", "fake") for link in read_links(runs / f"three.{name}")]
    assert [link.job_id for link in links] == ["101", "102", "103", "104", "105"]
    texts = [next((runs / f"three.{name}/logs").glob(f"link_{k}/*_submission.sh")).read_text()
             for name, k in (("one", 1), ("two", 1), ("two", 3), ("fake", 1))]  # fmt: skip
    waits = [[line for line in text.splitlines() if "dependency" in line] for text in texts]
    assert waits == [[], *([f"#SBATCH --dependency=afterany:{job}"] for job in (101, 103, 104))]
    assert "BATON_GATE=three.one" in dry.stdout and "BATON_GATE=three.two" in dry.stdout
    cluster.answers("squeue", "echo '103|PENDING||N/A|Dependency'")
    twice = launcher(pipeline)
    assert twice.returncode == 85
    assert "pipeline three is queued already" in twice.stderr


def test_links_added_to_a_stage_wait_at_the_same_gate(
    cluster: FakeCluster, launcher: Launcher, runs: Path, pipeline: Path
) -> None:
    launcher(pipeline)
    added = launcher("extend", "three.two", "-n1")
    assert added.returncode == 0, added.stdout + added.stderr
    submitted = [(link.number, link.submitted["gate"]) for link in read_links(runs / "three.two")]
    assert submitted == [(number, "three.one") for number in (1, 2, 3, 4)]


def test_a_preparation_is_a_stage_too(launcher: Launcher, runs: Path, pipeline: Path) -> None:
    prepare = pipeline.parent / "prepare.sub"
    prepare.write_text("#!/bin/bash\n#SBATCH --job-name=prepare\necho prepared\n")
    pipeline.write_text("name: two\nstages: [{sub: prepare.sub}, {sub: a folder/fake.sub, links: 2}]")
    answer = launcher(pipeline)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (runs / "two.prepare" / DONE).exists() and (runs / "two.fake" / DONE).exists()


def test_a_refused_stage_takes_the_others_back(
    cluster: FakeCluster, launcher: Launcher, runs: Path, pipeline: Path
) -> None:
    cluster.answers(
        "sbatch",
        'n="$(wc -l < "$0.log")"\n[ "$n" -ge 3 ] && echo "sbatch: error: no more" >&2 && exit 1\n'
        'echo "Submitted batch job 10$n"',
    )
    refused = launcher(pipeline)
    assert refused.returncode == 85
    assert "sbatch: error: no more" in refused.stderr
    assert cluster.calls("scancel") == ["102", "101"]
    assert "stage three.two was refused" in read_links(runs / "three.one")[0].outcome


@pytest.mark.parametrize(
    "text, says",
    [
        ("name: x", "expected a name and a list of stages"),
        ("stages: [{lnks: 2}]", "stages[0].lnks: unknown key; did you mean links?"),
        ("stages: [{lnks: 2}]", "stages[0]: sub is missing"),
        ("stages: [{sub: a folder/fake.sub, links: two}]", "stages[0].links: got 'two', expected int"),
        ("stages: [{sub: a folder/fake.sub, links: 0}]", "expected at least 1"),
        ("stages: [{sub: none.sub}]", "none.sub: No such file"),
        ("stages: [{sub: a folder/fake.sub}, {sub: a folder/fake.sub}]", "there is a stage fake already"),
        ("stages: [{sub: a folder/fake.sub, settings: [lr]}]", "'lr': expected key=value"),
        ("settings: [lr]\nstages: [{sub: a folder/fake.sub}]", "pipeline.yaml: settings: 'lr': expected key=value"),
        ("settings: a=1\nstages: [{sub: a folder/fake.sub}]", "settings: got 'a=1', expected a list of key=value"),
        ("stages: [{sub: a folder/fake.sub, settings: a=1}]", "stages[0].settings: got 'a=1', expected a list"),
        ("stages: [{sub: a folder/fake.sub, settings: ['a={fake}']}]", "{fake} is not a stage before this one"),
        ("name: a b\nstages: [{sub: a folder/fake.sub}]", "name: 'a b': only letters"),
        ("stages: [{sub: a folder/fake.sub, name: $(reboot)}]", "only letters"),
        ("stages: [", "cannot be read"),
        ("stages: [!!python/object/apply:os.system ['touch pwned']]", "cannot be read"),
    ],
)
def test_mistakes_are_named(launcher: Launcher, runs: Path, pipeline: Path, text: str, says: str) -> None:
    pipeline.write_text(text)
    refused = launcher(pipeline)
    assert refused.returncode == 85
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not runs.exists()


@pytest.mark.parametrize("words, says", [(["a=1"], "the settings of each stage"), (["-n3"], "the links of each stage")])
def test_what_stands_in_the_file_is_not_typed(
    launcher: Launcher, runs: Path, pipeline: Path, words: list[str], says: str
) -> None:
    refused = launcher(pipeline, *words)
    assert refused.returncode == 85
    assert says in refused.stderr
