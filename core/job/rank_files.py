"""One file a rank and link, `logs/link_K/ranks/rank_00001.log`: where it is, why it failed, its stacks when it hung.

The first line is JSON and is written over; stacks follow it. Ranks read each other's files only once something is
wrong, so nothing here depends on a collective. A link that ends well leaves no file.

SIGQUIT makes a process and its loader workers add their stacks to the file (faulthandler), whatever they are doing.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from core.job.errors import describe_error, exit_code_of
from core.rundir.exit_codes import ExitCode
from core.rundir.processes import find_process
from core.timing.phases import Phases

LINE_BYTES = 4096
LONGEST_REASON = 500


@dataclass(frozen=True)
class RankState:
    """The last state that a rank told. `exit_code` and `reason` once it has failed; `is_stuck` while it hangs."""

    rank: int
    token: int  # of the run's lease
    host: str
    pid: int
    started: float  # the process
    phase: str
    step: int
    entered: int  # phases before this one
    since_s: float  # seconds in this phase
    seen: float  # when it told, in seconds since the epoch
    is_stuck: bool = False
    exit_code: int | None = None
    reason: str = ""

    def process_here(self) -> psutil.Process | None:
        """Return the rank's process, where that lives on this host."""
        return find_process(self.pid, started=self.started) if self.host == socket.gethostname() else None

    def condition(self) -> str:
        """Return what this host knows of the rank's process: stopped, sleeping, ..., gone; "" if elsewhere."""
        if self.host != socket.gethostname():
            return ""
        process = self.process_here()
        return "gone" if process is None else str(process.status())


class RankFile:
    """The file of this rank; a context that removes it after a good end and writes the failure into it otherwise."""

    def __init__(self, directory: Path, phases: Phases, *, rank: int, token: int) -> None:
        self.directory = directory
        self._rank, self._token = rank, token
        self._phases = phases
        self._process = psutil.Process()
        self._path = directory / f"rank_{rank:05d}.log"
        self._failed_at = float("inf")

    def __enter__(self) -> "RankFile":
        self.directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.lseek(self._file, LINE_BYTES, os.SEEK_SET)  # stacks go behind the line
        self.write()
        # Loader workers inherit the handler and the file.
        faulthandler.register(signal.SIGQUIT, file=self._file, all_threads=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        faulthandler.unregister(signal.SIGQUIT)
        if error is not None:
            self._failed_at = self.write(error=error).seen
        os.close(self._file)
        if error is None:
            with contextlib.suppress(OSError):
                self._path.unlink()
                self.directory.rmdir()  # by the last rank that leaves

    def write(self, *, is_stuck: bool = False, error: BaseException | None = None) -> RankState:
        """Write where this rank is; a disk that is full does not matter here."""
        place = self._phases.current
        state = RankState(
            rank=self._rank,
            token=self._token,
            host=socket.gethostname(),
            pid=self._process.pid,
            started=self._process.create_time(),
            phase=place.phase,
            step=place.step,
            entered=place.entered,
            since_s=round(time.monotonic() - place.since, 1),
            seen=time.time(),
            is_stuck=is_stuck,
            exit_code=None if error is None else int(exit_code_of(error)),
            reason="" if error is None else describe_error(error)[:LONGEST_REASON],
        )
        line = json.dumps(asdict(state)).encode().ljust(LINE_BYTES - 1) + b"\n"
        with contextlib.suppress(OSError):
            os.pwrite(self._file, line, 0)
            if is_stuck or error is not None:
                os.fsync(self._file)  # the others are about to read it
        return state

    def write_stacks(self) -> None:
        faulthandler.dump_traceback(self._file, all_threads=True)

    def read_others(self) -> list[RankState]:
        """Return what this job's other ranks told, in rank order; without those whose file is gone or torn."""
        found = []
        for path in sorted(self.directory.glob("rank_*.log")):
            with contextlib.suppress(OSError, ValueError, TypeError), path.open("rb") as file:
                found.append(RankState(**json.loads(file.read(LINE_BYTES))))
        return [state for state in found if state.token == self._token and state.rank != self._rank]

    def root_cause(self, code: ExitCode, reason: str) -> tuple[ExitCode, str]:
        """Return the cause of a failure here: perhaps this rank only lost another one that failed before it."""
        others = self.read_others()
        for state in others:
            if state.exit_code is not None and state.exit_code != ExitCode.BUG:
                return ExitCode(state.exit_code), f"rank {state.rank}: {state.reason}"
        for state in others:
            if state.exit_code is None and state.condition() == "gone":
                where = f"{state.phase} of step {state.step}"
                return code, f"rank {state.rank} ({state.host}, process {state.pid}) died without a word in {where}"
        earlier = [state for state in others if state.exit_code is not None and state.seen < self._failed_at]
        if earlier:
            first = min(earlier, key=lambda state: state.seen)
            return code, f"rank {first.rank}: {first.reason}"
        return code, reason


def ask_for_stacks(process: psutil.Process) -> None:
    """Let a process add its stacks to its rank's file, even while it holds the interpreter."""
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGQUIT)
