"""Chains on a real SLURM: the launcher, sbatch, srun and every signal are real; the recipe is a quick stand-in."""

import time

import pytest

from core.rundir.files import DONE, FAILED, STOP
from launchers.chain.submission import link_seed
from tests.slurm.conftest import Slurm

HOSTILE = "$(touch pwned) `id` 'x' \"y\" ; exit 3 \\ \u0448\u0430\u0433"
LONG = ("fake.step_s=0.2", "fake.steps_per_link=1000")


def test_four_links_one_after_another(slurm: Slurm) -> None:
    said = slurm.launch(
        "-n4",
        "--seed",
        7,
        slurm.sub(more="#SBATCH --gpus-per-node=2\n"),
        "fake.steps_per_link=3",
        "fake.total=12",
        f"fake.print={HOSTILE}\nsecond line",
    )
    assert "link 4" in said
    slurm.wait_until_over()
    links = slurm.links()
    assert [(link.exit_code, link.started["step"], link.step) for link in links] == [
        (75, 0, 3), (75, 3, 6), (75, 6, 9), (0, 9, 12),
    ]  # fmt: skip
    seeds = [link.started["seed"] for link in links]
    assert seeds == [link_seed(7, number) for number in (1, 2, 3, 4)] and len(set(seeds)) == 4
    assert slurm.log().count("second line 0,1\n") == 4, "the GPUs of the header"
    assert slurm.log().count(HOSTILE) == 4
    assert not list(slurm.folder.rglob("pwned"))
    assert [slurm.facts(link.job_id or "")["ExitCode"] for link in links] == ["75:0", "75:0", "75:0", "0:0"]
    assert "Traceback" not in slurm.log(), "a planned stop is no error"
    assert (slurm.runs / "fake" / DONE).exists()
    assert "done" in slurm.launch("status", "fake")
    assert "done: nothing to do" in slurm.launch("-n4", slurm.sub())
    assert slurm.queue() == []


def test_a_finished_run_leaves_the_queue(slurm: Slurm) -> None:
    slurm.launch("-n6", slurm.sub())
    slurm.wait_for(lambda: (slurm.runs / "fake" / DONE).exists(), "the last step")
    slurm.wait_until_over(timeout_s=60)
    assert [bool(link.started) for link in slurm.links()] == [True, True, False, False, False, False]


def test_cancel_lets_no_link_through_and_extend_goes_on(slurm: Slurm) -> None:
    slurm.launch("-n3", slurm.sub(), *LONG, "fake.total=2000")
    slurm.wait_for_starts(1)
    slurm.launch("cancel", "fake")
    slurm.wait_until_over()
    first, *others = slurm.links()
    assert (first.exit_code, first.step is not None) == (75, True)
    assert not any(link.started for link in others)
    assert (slurm.runs / "fake" / STOP).exists()
    slurm.launch("extend", "fake", "-n", 2, f"fake.total={(first.step or 0) + 3}", "fake.step_s=0")
    slurm.wait_until_over()
    assert (slurm.runs / "fake" / DONE).exists()
    assert slurm.events("started")[-1]["step"] == first.step


def test_a_crash_loop_ends_the_chain(slurm: Slurm) -> None:
    slurm.launch("-n6", slurm.sub(), "fake.at=7", "fake.exit=1", "fake.total=20")
    slurm.wait_for(lambda: (slurm.runs / "fake" / FAILED).exists(), "the verdict")
    slurm.wait_until_over()
    assert [link.exit_code for link in slurm.links() if link.started] == [75, 1, 1]
    assert "links 2 and 3" in (slurm.runs / "fake" / FAILED).read_text()
    assert "links 2 and 3" in slurm.launch("status", "fake")


def test_a_killed_rank_is_followed_by_the_next_link(slurm: Slurm) -> None:
    slurm.launch("-n2", slurm.sub(), "fake.step_s=0.2", "fake.steps_per_link=20", "fake.total=20")
    slurm.wait_for_starts(1)
    slurm.kill_rank("fake")
    slurm.wait_until_over()
    first, second = slurm.links()
    assert first.outcome == "killed by signal 9"
    assert (second.exit_code, second.step) == (0, 20)


@pytest.mark.parametrize("number", ["USR1", "TERM"])
def test_a_signal_loses_no_step(slurm: Slurm, number: str) -> None:
    slurm.launch("-n2", slurm.sub(), *LONG, "fake.total=8")
    slurm.wait_for_starts(1)
    slurm.wait_for(lambda: "step 3\n" in slurm.log(), "three steps")
    slurm.ask("scancel", f"--signal={number}", slurm.links()[0].job_id or "")
    slurm.wait_until_over()
    first, second = slurm.links()
    assert first.exit_code == 75 and (first.step or 0) >= 3
    assert second.started["step"] == first.step
    assert second.exit_code == 0


def test_scancel_of_a_link_saves_first(slurm: Slurm) -> None:
    """TERM reaches script and ranks alike: the script must outlive it, or SLURM kills the ranks while they save."""
    slurm.launch("-n1", slurm.sub(), "fake.step_s=1.5", "fake.steps_per_link=1000", "fake.total=2000")
    slurm.wait_for_starts(1)
    slurm.ask("scancel", slurm.links()[0].job_id or "")
    slurm.wait_until_over()
    (link,) = slurm.links()
    assert link.exit_code == 75 and link.step


def test_the_next_link_starts_in_seconds(slurm: Slurm) -> None:
    slurm.launch("-n2", slurm.sub(), "fake.total=10")
    slurm.wait_until_over()
    first, second = (slurm.facts(link.job_id or "") for link in slurm.links())
    ended, started = (
        time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) for text in (first["EndTime"], second["StartTime"])
    )
    assert started - ended <= 5


def test_the_time_limit_alone(slurm: Slurm) -> None:
    """Where no signal reaches the ranks before the end, TERM comes after it, and KILL some seconds later."""
    sub = slurm.sub()
    sub.write_text(sub.read_text().replace("--signal=USR1@60", "--signal=B:USR1@60"))
    slurm.launch("-n2", sub, *LONG, "fake.total=1000")
    slurm.wait_for_starts(1)
    job = slurm.links()[0].job_id or ""
    slurm.shorten(job, 2)
    slurm.wait_for_starts(2)
    assert slurm.state(job) == "TIMEOUT"
    first, second = slurm.links()
    assert first.exit_code == 75 and first.step
    assert second.started["step"] == first.step


def test_preemption_saves_within_the_grace_time(slurm: Slurm) -> None:
    sub = slurm.sub(more="#SBATCH --partition=preempt\n#SBATCH --nodelist=n1\n#SBATCH --exclusive\n")
    slurm.launch("-n2", sub, *LONG, "fake.total=40")
    slurm.wait_for_starts(1)
    slurm.ask("sbatch", "--partition=urgent", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    slurm.wait_for_starts(2)
    first = slurm.links()[0]
    assert first.exit_code == 75
    assert slurm.events("started")[1]["step"] == first.step > 0


def test_requeue_is_the_same_link_again(slurm: Slurm) -> None:
    slurm.launch("-n1", slurm.sub(), *LONG, "fake.total=30")
    slurm.wait_for_starts(1)
    job = slurm.links()[0].job_id or ""
    slurm.ask("scontrol", "requeue", job)
    slurm.skip_hold(job)
    again = slurm.wait_for_starts(2)
    assert (again["link"], again["seed"]) == (1, slurm.events("started")[0]["seed"])
    slurm.wait_until_over()
    assert (slurm.runs / "fake" / DONE).exists()
    assert slurm.log().count("at work") == 2, "the log is appended to"


def test_a_lost_node_is_left_behind(slurm: Slurm) -> None:
    """SLURM notices a dead node by itself, in some seconds, and starts the job elsewhere."""
    slurm.launch("-n2", slurm.sub(), "fake.step_s=0.3", "fake.steps_per_link=20", "fake.total=20")
    node = slurm.wait_for_starts(1)["host"]
    job = slurm.links()[0].job_id or ""
    slurm.cluster.kill(node)
    slurm.skip_hold(job)
    assert slurm.wait_for_starts(2)["host"] != node
    slurm.wait_until_over()
    assert (slurm.runs / "fake" / DONE).exists()


def test_the_controller_may_restart(slurm: Slurm) -> None:
    slurm.launch("-n2", slurm.sub(), "fake.step_s=0.2", "fake.steps_per_link=15", "fake.total=30")
    slurm.wait_for_starts(1)
    slurm.cluster.daemon("slurmctld").stop()
    assert "fake" in slurm.launch("status", "fake"), "status needs no controller"
    slurm.cluster.start("slurmctld")
    slurm.wait_for(lambda: len(slurm.links()[1].ended) > 0, "the second link")
    assert [link.exit_code for link in slurm.links()] == [75, 0]
    assert len(slurm.events("started")) == 2, "no link started twice"


def test_a_chain_waits_for_another_job(slurm: Slurm) -> None:
    before = slurm.ask("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 60").strip()
    slurm.launch("-n2", "--after", before, slurm.sub())
    assert slurm.facts(slurm.links()[0].job_id or "")["Dependency"].startswith(f"afterany:{before}")
    slurm.ask("scancel", before)
    slurm.wait_until_over()
    assert (slurm.runs / "fake" / DONE).exists()


def test_a_second_launch_queues_behind_the_first(slurm: Slurm) -> None:
    slurm.launch("-n1", slurm.sub(), "fake.step_s=0.3", "fake.total=10")
    slurm.launch("-n1", slurm.sub())
    first, second = slurm.links()
    assert first.job_id and first.job_id in slurm.facts(second.job_id or "")["Dependency"]
    slurm.wait_until_over()
    assert [link.step for link in slurm.links()] == [5, 10]


def test_refused_by_sbatch(slurm: Slurm) -> None:
    said = slurm.launch("-n2", slurm.sub(more="#SBATCH --partition=nowhere\n"), code=85)
    assert "invalid partition" in said.lower()
    assert slurm.queue() == []
