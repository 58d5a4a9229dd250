"""A daemon that outlives the command that started it, known by its process id and start time, so that no stranger's
process is ever taken for it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 10.0
POLL_S = 0.02


@dataclass(frozen=True)
class Daemon:
    """The daemon whose process id is kept in `pid_file`."""

    pid_file: Path

    def start(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        """Start it in a session of its own, its output appended to `log`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid_file.write_text(f"{process.pid} {_start_time(process.pid)}\n")

    @property
    def pid(self) -> int | None:
        """Its process id; None when it does not run."""
        try:
            pid, started = self.pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if started == _start_time(int(pid)) else None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal it and wait until it is gone; SIGKILL if that takes too long."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while (pid := self.pid) is not None:
            if time.monotonic() > deadline:
                number = signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(POLL_S)
        self.pid_file.unlink(missing_ok=True)


def _start_time(pid: int) -> str | None:
    """In clock ticks since boot; None for a process that is gone or a zombie."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if facts[0] == "Z" else facts[19]
