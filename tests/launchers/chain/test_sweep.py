"""A sweep: a run for every combination, and one comparison of all of them."""

import json
from pathlib import Path

import pytest

from core.rundir.ledger import read_links
from launchers.chain.sweep import split_values
from tests.launchers.conftest import FakeCluster, Launcher


@pytest.mark.parametrize(
    "text, values",
    [
        ("1e-3,3e-3", ["1e-3", "3e-3"]),
        ("a", ["a"]),
        ("[0.9,0.98],[0.9,0.95]", ["[0.9,0.98]", "[0.9,0.95]"]),
        ("{a: [1,2]},null", ["{a: [1,2]}", "null"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("x,", ["x", ""]),
    ],
)
def test_commas_inside_brackets_and_quotes_belong_to_a_value(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_two_by_two_runs_here_end_in_one_comparison(launcher: Launcher, runs: Path, sub: Path) -> None:
    words = ["sweep", "-n2", "--run", "grid", sub, "fake.total=6,8", "fake.steps_per_link=4,5", "fake.step_s=0"]
    sweep = launcher(*words)
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    steps = {run.name: [link.step for link in read_links(run)] for run in sorted(runs.glob("grid-*"))}
    assert steps == {"grid-1": [4, 6], "grid-2": [5, 6], "grid-3": [4, 8], "grid-4": [5, 8]}
    assert sweep.stdout.count("test wer") == 1, "one comparison"
    assert (runs / "grid/comparison.png").stat().st_size > 1000
    comparison = launcher("compare", "grid", "--json")
    rows = json.loads(comparison.stdout)["runs"]
    assert [row["run"] for row in rows] == ["grid-1", "grid-2", "grid-3", "grid-4"]
    assert rows[2]["settings"] == {"fake.total": "8", "fake.steps_per_link": "4"}

    before = [(runs / f"grid-{k}/chain.jsonl").read_bytes() for k in (1, 2, 3, 4)]
    again = launcher(*words)
    assert again.returncode == 0
    assert "4 of them done" in again.stdout
    assert [(runs / f"grid-{k}/chain.jsonl").read_bytes() for k in (1, 2, 3, 4)] == before
    other = launcher("sweep", "--run", "grid", sub, "fake.total=6,7")
    assert other.returncode == 85
    assert "begun with other values" in other.stderr


def test_on_slurm_a_link_of_all_runs_is_one_array(
    cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path
) -> None:
    sweep = launcher("sweep", "-n2", "--run", "grid", sub, "a=1,2", "b=x")
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    scripts = [Path(call).read_text() for call in cluster.calls("sbatch") if Path(call).exists()]
    assert len(cluster.calls("sbatch")) == 3
    comparison = (runs / "grid/logs/comparison.sh").read_text()
    arrays = sorted((runs / "grid/logs").glob("link_*/*_submission.sh"))
    first, second = (path.read_text() for path in arrays)
    assert "#SBATCH --array=0-1%2" in first and "dependency" not in first
    assert "#SBATCH --dependency=afterany:101" in second
    assert "#SBATCH --dependency=afterany:102" in comparison and "launchers compare grid" in comparison
    assert comparison in scripts
    for number in (1, 2):
        links = read_links(runs / f"grid-{number}")
        assert [link.job_id for link in links] == [f"101_{number - 1}", f"102_{number - 1}"]
        assert links[0].submitted["argv"][1:] == [f"run.name=grid-{number}", "b=x", f"a={number}"]


def test_the_dry_run_shows_the_arrays_that_are_submitted(
    cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path
) -> None:
    words = ["-n2", "--run", "grid", sub, "a=1,2", "b=x"]
    dry = launcher("sweep", "--dry-run", *words)
    assert dry.returncode == 0, dry.stderr
    assert not runs.exists(), "nothing is written"
    assert cluster.calls("sbatch") == []
    assert launcher("sweep", *words).returncode == 0
    arrays = sorted((runs / "grid/logs").glob("link_*/*_submission.sh"))
    submitted = [*(path.read_text() for path in arrays), (runs / "grid/logs/comparison.sh").read_text()]
    shown = [part.partition("\n")[2] for part in dry.stdout.split("---- ")[1:]]
    assert len(shown) == len(submitted) == 3
    for number, (text, script) in enumerate(zip(shown, submitted, strict=True)):
        text = text.replace(f"<job array of link {number}>", f"10{number}").replace("'", "")
        assert text.startswith(script.replace("'", "").rstrip("\n"))
    assert "# task 1: ['env'" in shown[1] and "'a=2'" in shown[1] and "BATON_LINK=2" in shown[1]


def test_a_refused_array_takes_the_others_back(cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path) -> None:
    cluster.answers(
        "sbatch",
        '[ "$(wc -l < "$0.log")" -ge 2 ] && echo "sbatch: error: too many jobs" >&2 && exit 1\n'
        'echo "Submitted batch job 101"',
    )
    refused = launcher("sweep", "-n2", sub, "a=1,2")
    assert refused.returncode == 85
    assert "sbatch: error: too many jobs" in refused.stderr
    assert sorted(cluster.calls("scancel")) == ["101_0", "101_1"]


def test_a_sweep_is_cancelled_by_its_name(cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path) -> None:
    launcher("sweep", "--run", "grid", sub, "a=1,2")
    cluster.answers("squeue", "echo '101_0|PENDING||N/A|Priority'; echo '101_1|RUNNING|n1|N/A|None'")
    cancelled = launcher("cancel", "grid")
    assert "run grid-1 is cancelled\n" in cancelled.stdout
    assert "run grid-2 is cancelled; it saves and stops" in cancelled.stdout
    assert cluster.calls("scancel") == ["--quiet --state=PENDING 101_0", "--signal=USR1 101_1"]
    assert all((runs / f"grid-{number}/STOP").exists() for number in (1, 2))


@pytest.mark.parametrize(
    "words, says",
    [(["a=1"], "needs a setting with several values"), ([f"a={','.join('x' * 1001)}"], "at most 1000 are started")],
)
def test_what_is_no_sweep(launcher: Launcher, runs: Path, sub: Path, words: list[str], says: str) -> None:
    refused = launcher("sweep", sub, *words)
    assert refused.returncode == 85
    assert says in refused.stderr
