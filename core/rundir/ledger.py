"""What the files of a run directory say: its links, its step, its newest numbers, and who is at work in it."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from core.rundir.files import (
    CHECKPOINTS,
    DONE,
    EXIT_WORDS,
    FAILED,
    LEASE,
    LEDGER,
    METRICS,
    STOP,
    ExitCode,
    is_overtaken,
    read_json,
    read_lineage,
    read_records,
)

STALE_HEARTBEAT_S = 90.0
TAIL_BYTES = 8192  # a dozen records
PLANNED = (ExitCode.DONE, ExitCode.CONTINUE)


@dataclass
class Link:
    """One job of the chain, as the ledger tells it; None for what it does not tell (yet)."""

    number: int
    submitted: dict[str, Any] = field(default_factory=dict)
    started: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)

    @property
    def job_id(self) -> str | None:
        job_id = self.submitted.get("job_id") or self.started.get("job_id")
        return None if job_id is None else str(job_id)

    @property
    def seed(self) -> int | None:
        return self.submitted.get("seed", self.started.get("seed"))

    @property
    def exit_code(self) -> int | None:
        return self.ended.get("exit_code")

    @property
    def step(self) -> int | None:
        return self.ended.get("step")

    @property
    def outcome(self) -> str:
        """Why it ended, in words; empty while it has not."""
        return end_in_words(self.ended)

    @property
    def has_run(self) -> bool:
        """False where it ended in the queue: cancelled, or its turn had not come."""
        return bool(self.ended.get("ran", True))

    @property
    def is_on_slurm(self) -> bool:
        return self.submitted.get("cluster") == "slurm"

    @property
    def wall_s(self) -> float | None:
        return wall_s(self.started, self.ended)


def wall_s(started: Mapping[str, Any], ended: Mapping[str, Any]) -> float | None:
    """From the start of its processes to the end, as they measured it; else by the ledger's clock."""
    if not (started and ended):
        return None
    if "wall_s" in ended:
        return float(ended["wall_s"])
    start, end = (datetime.fromisoformat(event["time"]) for event in (started, ended))
    return (end - start).total_seconds()


def end_in_words(ended: Mapping[str, Any]) -> str:
    """Why a link ended, from its last record; empty while there is none."""
    if not ended:
        return ""
    code, reason = ended.get("exit_code"), ended.get("reason")
    if code is None and reason:
        return str(reason)
    words = describe_exit(code)
    return f"{words}: {reason}" if reason and reason != words else words


def describe_exit(code: int | None) -> str:
    if code is None:
        return "ended without a word"
    if code < 0 or 128 < code <= 128 + 64:  # as Python and as a shell report it
        return f"killed by signal {-code if code < 0 else code - 128}"
    return EXIT_WORDS.get(code, f"exit code {code}")


def read_links(run: Path) -> list[Link]:
    """The links of a run in order. A requeued link keeps its latest start; an older token's end does not count."""
    links: dict[int, Link] = {}
    for record in read_records(run / LEDGER):
        number, event = record.get("link"), record.get("event")
        if not isinstance(number, int) or event not in ("submitted", "started", "ended"):
            continue
        link = links.setdefault(number, Link(number))
        if event == "started":
            link.ended = {}
        if event == "ended" and record.get("token", 0) < link.started.get("token", 0) and "token" in record:
            continue
        setattr(link, event, record)
    return [links[number] for number in sorted(links)]


def newest_step(run: Path, links: Sequence[Link] | None = None) -> int:
    """The step from which the next link goes on: the newest complete checkpoint, or where a link ended as planned."""
    links = read_links(run) if links is None else links
    steps = [link.step or 0 for link in links if link.exit_code in PLANNED]
    return max([*steps, _saved_step(run / CHECKPOINTS)])


def _saved_step(checkpoints: Path) -> int:
    """Of the newest complete checkpoint that counts; 0 where there is none."""
    lineage = read_lineage(checkpoints)
    names = ((marker.parent.name.removeprefix("step_"), marker) for marker in checkpoints.glob("step_*/COMPLETE"))
    markers = {int(digits): marker for digits, marker in names if digits.isdigit()}
    for step in sorted(markers, reverse=True):
        try:
            token = int(read_json(markers[step])["token"])
        except (OSError, ValueError, KeyError, TypeError):
            return step  # damaged perhaps: the next link will see
        if not is_overtaken(lineage, token=token, step=step):
            return step
    return 0


def latest_metrics(run: Path, links: Sequence[Link]) -> dict[str, Any]:
    """The newest value of every name in metrics.jsonl that counts, from the end of the file only.

    What a job wrote beyond the step from which a later one went on does not count: a node that was cut off may go on
    writing.
    """
    path = run / METRICS
    if not path.exists():
        return {}
    size, length = path.stat().st_size, TAIL_BYTES
    starts = {link.started["token"]: link.started.get("step", 0) for link in links if "token" in link.started}
    lineage = {**read_lineage(run / CHECKPOINTS), **starts}
    while True:
        with path.open("rb") as file:
            file.seek(max(0, size - length))
            tail = file.read()
        merged: dict[str, Any] = {}
        for record in _records(tail):
            token, step = record.get("token"), record.get("step")
            if token is None or step is None or not is_overtaken(lineage, token=token, step=step):
                merged.update(record)
        if merged or length >= size:
            return merged
        length *= 8  # what does not count fills the end


def _records(tail: bytes) -> list[dict[str, Any]]:
    records = []
    for line in tail.splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the first line is usually cut
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def holder(run: Path) -> dict[str, Any] | None:
    """The lease of the job that is at work in the run directory; None if none is."""
    try:
        lease = read_json(run / LEASE)
        host, pid, heartbeat = lease["host"], int(lease["pid"]), float(lease["heartbeat"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if heartbeat == 0.0:
        return None  # released
    if host == socket.gethostname():
        return lease if is_alive(pid) else None
    return lease if time.time() - heartbeat < STALE_HEARTBEAT_S else None


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OSError:
        return True  # no /proc: the signal was accepted
    return state != "Z"


def state_of(run: Path, links: Sequence[Link], *, queue: dict[str, str]) -> str:
    """One word for a run. `queue`: SLURM's state of each job id that it still knows."""
    if (run / DONE).exists():
        return "done"
    if holder(run):
        return "running"
    waiting = {queue[link.job_id] for link in links if link.job_id in queue}
    if (run / STOP).exists():
        return "cancelled"
    if (run / FAILED).exists():
        return "failed"
    if "RUNNING" in waiting:
        return "starting"
    if waiting:
        return "queued"
    ran = [link for link in links if link.started or (link.ended and link.has_run)]
    if not ran:
        return "not started" if links else "interrupted"
    if not ran[-1].ended:
        return "interrupted"
    return "paused" if ran[-1].exit_code == ExitCode.CONTINUE else "failed"
