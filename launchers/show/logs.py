"""`logs`: what a link printed, and with -f what it and the links after it go on to print."""

import codecs
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core.rundir.ledger import LinkRecord, read_links
from launchers.runs import LaunchError, find_run
from launchers.show.run_state import state_of
from launchers.slurm.queue import active, read_queue

POLL_S = 0.5
IDLE_CHECKS = 10  # between two links a chain looks idle for a moment
QUEUE_EVERY = 10  # SLURM is asked less often than files


class LogTail:
    """A reader that prints what a growing log gets, whole lines at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def pump(self, *, last: bool = False) -> None:
        """Print the whole lines that are new; with `last` the unfinished one as well."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
            self._offset += len(fresh)
            self._rest += self._decoder.decode(fresh)
        lines, newline, self._rest = self._rest.rpartition("\n")
        text = lines + newline + (self._rest if last else "")
        if last:
            self._rest = ""
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()


def show_logs(name: str, *, link: int | None, follow: bool) -> None:
    """Print the log of the newest link (or of one by number). LaunchError if there is none."""
    run = find_run(name)
    logged = _logged(read_links(run))
    chosen = logged[-1] if link is None and logged else next((one for one in logged if one.number == link), None)
    if chosen is None:
        numbers = ", ".join(str(one.number) for one in logged) or "none"
        raise LaunchError(f"run {name} has no log of {'any link' if link is None else f'link {link}'} (has: {numbers})")
    tail = _open(run, chosen)
    if follow:
        _follow(run, chosen, tail)
    tail.pump(last=True)


def _logged(links: Sequence[LinkRecord]) -> list[LinkRecord]:
    return [link for link in links if "log" in link.submitted]


def _open(run: Path, link: LinkRecord) -> LogTail:
    print(f"== link {link.number}: {run / link.submitted['log']}")
    return LogTail(run / link.submitted["log"])


def _follow(run: Path, link: LinkRecord, tail: LogTail) -> None:
    """Print until the run is idle, going over to the next link when this one has ended."""
    num_idle = num_polls = 0
    queue: dict[str, str] = {}
    while num_idle < IDLE_CHECKS:
        tail.pump()
        links = read_links(run)
        current = next(one for one in links if one.number == link.number)
        later = [one for one in _logged(links) if one.number > link.number]
        if current.ended and later:
            tail.pump(last=True)
            link = later[0]
            tail = _open(run, link)
        if num_polls % QUEUE_EVERY == 0:
            queue = active(read_queue(links), links)
        num_polls += 1
        state = state_of(run, links, queue=queue)
        if state == "done":
            break
        is_active = state in ("running", "starting", "queued")
        num_idle = 0 if is_active or (later and not links[-1].ended) else num_idle + 1
        time.sleep(POLL_S)
    tail.pump(last=True)
