"""When sbatch refuses: its own words, and nothing half-submitted left behind unless it was asked for."""

import json
import subprocess
from pathlib import Path

import pytest

from core.rundir.ledger import read_links
from tests.launchers.conftest import FakeCluster, Launcher, write_sub

REFUSES_THE_THIRD = """\
n="$(wc -l < "$0.log")"
if [ "$n" -ge 3 ]; then
    echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
    exit 1
fi
echo "Submitted batch job 10$n"
"""


def test_the_links_before_are_cancelled_again(cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path) -> None:
    cluster.answers("sbatch", REFUSES_THE_THIRD)
    refused = launcher("-n4", sub)
    assert refused.returncode == 85
    assert "error:   sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" in refused.stderr
    assert "link 3 is not submitted" in refused.stderr
    assert "cancelled again: link 1 (job 101), link 2 (job 102)" in refused.stderr
    assert cluster.calls("scancel") == ["101 102"]
    assert [link.outcome for link in read_links(runs / "fake")] == [
        "cancelled before it began, as link 3 was refused"
    ] * 2
    assert not (runs / "fake/logs/link_3").exists()
    (row,) = json.loads(launcher("status", "--json").stdout)
    assert row["state"] == "not started"


def test_they_are_kept_where_asked(cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path) -> None:
    cluster.answers("sbatch", REFUSES_THE_THIRD)
    refused = launcher("-n4", "--keep-queued", sub)
    assert refused.returncode == 85
    assert "kept as asked: link 1 (job 101), link 2 (job 102)" in refused.stderr
    assert cluster.calls("scancel") == []
    assert [link.ended for link in read_links(runs / "fake")] == [{}, {}]


def test_ctrl_c_between_two_links_takes_the_first_back(
    cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path
) -> None:
    interrupt = '[ "$(wc -l < "$0.log")" -ge 2 ] && kill -INT $PPID && sleep 5'
    cluster.answers("sbatch", f"{interrupt}\necho 'Submitted batch job 101'")
    stopped = launcher("-n4", sub)
    assert stopped.returncode == 85
    assert "Ctrl-C came first" in stopped.stderr
    assert cluster.calls("scancel") == ["101"]
    assert not read_links(runs / "fake")[0].has_run


def test_a_first_link_that_is_refused_leaves_nothing(
    cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path
) -> None:
    cluster.answers("sbatch", "echo 'sbatch: error: invalid partition specified: gpux' >&2; exit 1")
    refused = launcher(sub)
    assert refused.returncode == 85
    assert "invalid partition specified: gpux" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert [path.name for path in runs.iterdir()] == [".code"]


def test_what_is_submitted_is_what_the_dry_run_shows(
    cluster: FakeCluster, launcher: Launcher, runs: Path, tmp_path: Path
) -> None:
    header = "#SBATCH --job-name=fake\n#SBATCH --comment='two words; $(reboot)'\n#SBATCH --time=10"
    sub = write_sub(tmp_path / "x.sub", header=header)
    words = ["-n2", "--after", "55", sub, "a.text=two\nlines $(touch pwned)"]
    dry = launcher("--dry-run", *words)
    assert dry.returncode == 0, dry.stderr
    assert not runs.exists(), "nothing is written"
    assert cluster.calls("sbatch") == []
    assert launcher(*words).returncode == 0
    submitted = [next((runs / f"fake/logs/link_{link}").glob("*_submission.sh")).read_text() for link in (1, 2)]
    first, second = (part.partition("\n")[2] for part in dry.stdout.split("---- link ")[1:])
    assert first.startswith(submitted[0].rstrip("\n")) and "--dependency=afterany:55" in submitted[0]
    assert second.replace("'afterany:<job of link 1>'", "afterany:101").startswith(submitted[1].rstrip("\n"))
    for text in submitted:
        assert "pwned" not in text, "no value of a person is shell text"
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        assert "#SBATCH --comment='two words; $(reboot)'" in text


@pytest.mark.parametrize("after, says", [("x;y", "expected the number of a job"), ("12", "only SLURM has a queue")])
def test_after_needs_a_job_and_a_queue(launcher: Launcher, runs: Path, sub: Path, after: str, says: str) -> None:
    cluster = [] if after == "12" else ["--cluster", "slurm"]
    refused = launcher("--after", after, *(cluster or ["--cluster", "local"]), sub)
    assert refused.returncode == 85
    assert says in refused.stderr
    assert not list(runs.glob("fake"))
