"""One link at work on this machine: its log shown live, its time limit kept, a stop handed on, its end understood."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

from core.rundir.exit_codes import ExitCode, describe_exit
from core.rundir.lease import find_holder
from core.rundir.ledger import newest_step, read_links, record_link
from core.rundir.processes import StopRequests, find_writer, session_members
from launchers.chain.stop_rule import LinkOutcome
from launchers.chain.submission import LaunchedRun, debug_here, start_here
from launchers.show.logs import LogTail

POLL_S = 0.2
LARGEST_MARGIN_S = 60.0


class LocalLink:
    """A link of `run` that was started here. `resume_from`: the step from which it can go on."""

    def __init__(self, run: LaunchedRun, link: int, *, resume_from: int) -> None:
        self._run, self.link, self._resume_from = run, link, resume_from
        self._job = start_here(run, link)
        self.job_id = str(self._job.job_id)
        self.log = Path(self._job.paths.stdout)
        self._controller = int(self.job_id)  # process, process group and session of the link
        self._started = time.monotonic()

    def wait(self, stops: StopRequests) -> LinkOutcome:
        """Follow the link to its end, and see to it that the ledger tells that end."""
        tail = LogTail(self.log)
        limit_s = self._run.header.time_limit_s
        margin_s = 0.0 if limit_s is None else min(LARGEST_MARGIN_S, limit_s / 10)
        answered, is_warned, is_killed = stops.count, False, False
        while not self._is_over():
            tail.pump()
            elapsed_s = time.monotonic() - self._started
            if stops.count > answered:
                answered += 1
                is_killed = self._answer(answered) or is_killed
            if limit_s is not None and not is_warned and elapsed_s > limit_s - margin_s:
                is_warned = True
                self._ask_to_stop(f"--time={self._run.header.options['time']} is nearly over")
            if limit_s is not None and not is_killed and elapsed_s > limit_s:
                is_killed = True
                self._kill(f"--time={self._run.header.options['time']} is over")
            time.sleep(POLL_S)
        tail.pump(last=True)
        return self._outcome()

    def _is_over(self) -> bool:
        """Tell whether the job and every process that it started have ended (a shell may die before its ranks)."""
        return bool(self._job.done()) and not session_members(self._controller)

    def _answer(self, count: int) -> bool:
        """Ask the link to save at the first stop request, warn at the second, kill at the third: then return True."""
        if count == 1:
            self._ask_to_stop("stop requested")
        elif count == 2:
            _say(f"link {self.link} is still saving; once more kills it, and the steps since its last checkpoint")
        else:
            self._kill("killed on request")
        return count > 2

    def _ask_to_stop(self, why: str) -> None:
        """Signal rank 0 alone: the ranks vote, save and leave together, and torchrun would kill the others."""
        _say(f"{why}: asking link {self.link} to save and stop")
        rank_0 = self._rank_0()
        if rank_0 is not None:
            os.kill(rank_0, signal.SIGTERM)
        else:  # nothing has been trained yet
            _signal_group(self._controller, signal.SIGTERM)

    def _rank_0(self) -> int | None:
        """Return the process that writes this link's records, if it is at work."""
        lease = find_holder(self._run.directory)
        if lease is not None and lease["host"] == socket.gethostname():
            return int(lease["pid"])
        started = next((one.started for one in read_links(self._run.directory) if one.number == self.link), {})
        process = find_writer(started)
        return None if process is None else process.pid

    def _kill(self, why: str) -> None:
        _say(f"{why}: killing link {self.link}")
        for pid in session_members(self._controller):
            os.kill(pid, signal.SIGKILL)

    def _outcome(self) -> LinkOutcome:
        directory = self._run.directory
        links = read_links(directory)
        mine = next((one for one in links if one.number == self.link), None)
        if mine is None or not mine.ended:
            code = self._exit_code()
            reason = describe_exit(code)
            ran = code != ExitCode.LEASE
            record_link(directory, event="ended", link=self.link, exit_code=code, reason=reason, step=None, ran=ran)
            links = read_links(directory)
            mine = next(one for one in links if one.number == self.link)
        return LinkOutcome(
            link=self.link,
            exit_code=mine.exit_code,
            words=mine.outcome,
            resume_from=self._resume_from,
            resume_at=newest_step(directory, links),
            last_step=mine.step,
        )

    def _exit_code(self) -> int:
        """Return the exit code of the .sub file; a link that died without leaving one was killed."""
        if not self._job.paths.result_pickle.exists():
            return -signal.SIGKILL
        return int(self._job.result().returncode)


class DebugLink(LocalLink):
    """A link in this very terminal, by submitit's debug executor: no log, no time limit, Ctrl-C goes to it directly."""

    def __init__(self, run: LaunchedRun, link: int, *, resume_from: int) -> None:
        self._run, self.link, self._resume_from = run, link, resume_from
        self._job = debug_here(run, link)
        self.job_id = str(self._job.job_id)
        self.log = Path(self._job.paths.stdout)

    def wait(self, stops: StopRequests) -> LinkOutcome:
        """Run the link to its end."""
        self._code = int(self._job.result().returncode)
        return self._outcome()

    def _exit_code(self) -> int:
        return self._code


def _say(text: str) -> None:
    print(f"baton: {text}", flush=True)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
