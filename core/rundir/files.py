"""The files of a run directory: their names, the exit codes, the ledger, and JSON files that appear whole.

The one module of core that the launchers import too, so it needs nothing but the standard library.
Programs outside Baton read these files: names and keys are documented in core/README.md and kept.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
RUN_CONTEXT = "run_context.json"
RESOLVED_CONFIG = "resolved_config.yaml"
LEDGER = "chain.jsonl"
METRICS = "metrics.jsonl"
TRAIN_LOG = "train.log"
SCORES = "scores.json"
SAMPLES = "samples.jsonl"
BAD_SAMPLES = "bad_samples.jsonl"
SKIPPED_UPDATES = "skipped_updates.jsonl"
OUT_OF_MEMORY = "out_of_memory.jsonl"
REPORT = "report.html"
PICTURE = "report.png"
CLUSTERS = "clusters.png"
SIMILARITIES = "similarities.png"
NEIGHBOURS = "neighbours.jsonl"
TENSORBOARD = "tensorboard"
LOGS = "logs"
CHECKPOINTS = "checkpoints"
LEASE = "lease.json"
LINEAGE = "lineage.json"  # among the checkpoints: the step that each job went on from

DONE = "DONE"  # the last step is reached: later links have nothing to do
STOP = "STOP"  # a person cancelled the run: no link trains until `extend` removes it
FAILED = "FAILED"  # the chain was stopped because it made no progress; the file says why

# What a job hands to the process it starts. Read here and nowhere else.
ENV_RUNS = "BATON_RUNS"
ENV_LINK = "BATON_LINK"
ENV_LINK_SEED = "BATON_LINK_SEED"
ENV_LOCAL_TASKS = "BATON_LOCAL_TASKS"  # ranks on this machine, where run.sh or a launcher starts them
ENV_DEADLINES = ("BATON_DEADLINE", "SLURM_JOB_END_TIME")  # seconds since the epoch
ENV_JOBS = ("SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID")


class ExitCode(IntEnum):
    """What a link's exit code means; the number itself is kept in the ledger."""

    DONE = 0
    BUG = 1
    CONTINUE = 75
    CONFIG = 85
    HANG = 86
    STORAGE = 87
    DIVERGED = 88
    DATA = 89
    NODE = 90
    OUT_OF_MEMORY = 91
    LEASE = 92
    RENDEZVOUS = 93


EXIT_WORDS: Mapping[int, str] = {
    ExitCode.DONE: "done",
    ExitCode.BUG: "crashed (a bug)",
    ExitCode.CONTINUE: "stopped as planned, to be continued",
    ExitCode.CONFIG: "configuration error",
    ExitCode.HANG: "a rank hung",
    ExitCode.STORAGE: "storage failed (disk full or not writable)",
    ExitCode.DIVERGED: "training diverged",
    ExitCode.DATA: "too many bad samples or missing data",
    ExitCode.NODE: "the node failed",
    ExitCode.OUT_OF_MEMORY: "out of memory",
    ExitCode.LEASE: "another job holds the run",
    ExitCode.RENDEZVOUS: "the ranks did not find each other",
}


def runs_root() -> Path:
    """Where run directories live: `$BATON_RUNS`, else `runs` under the current directory."""
    return Path(os.environ.get(ENV_RUNS) or "runs").absolute()


def link_from_environment() -> tuple[int | None, int | None]:
    """(number of this link, its seed) as the launcher handed them over; None where there is no launcher."""
    link, seed = os.environ.get(ENV_LINK), os.environ.get(ENV_LINK_SEED)
    return (int(link) if link else None), (int(seed) if seed else None)


def deadline_from_environment() -> float | None:
    """When the job ends, in seconds since the epoch; None where nothing says so."""
    found = [value for name in ENV_DEADLINES if (value := os.environ.get(name))]
    return float(found[0]) if found else None


def job_from_environment() -> str:
    """The id of the job this process belongs to; its own process id where there is none."""
    found = [value for name in ENV_JOBS if (value := os.environ.get(name))]
    return found[0] if found else f"process-{os.getpid()}"


def slurm_job() -> str | None:
    """The id of the SLURM job that this process belongs to; None outside of SLURM."""
    return os.environ.get("SLURM_JOB_ID")


def is_started_by_run_sh() -> bool:
    """Whether a person typed ./run.sh, so that no launcher says how to go on."""
    return ENV_LINK not in os.environ and ENV_LOCAL_TASKS in os.environ


def ranks_of_torchrun() -> int | None:
    """How many ranks torchrun started on this machine; None where it did not."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE")
    return int(ranks) if ranks else None


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def fsync_directory(directory: Path) -> None:
    """Make a rename or a new file in `directory` survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: str) -> None:
    """Write a text file so that a reader sees all of it or none: temporary name, fsync, rename."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document whole. NaN is refused: it is not JSON."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON object as one line, in one write, so that two writers cannot mix their lines.

    A last line torn by a kill or a full disk is ended first, so that it costs no record but its own.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = "\n" + line
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a line torn by a kill is passed over. A missing file is empty."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record


def read_lineage(checkpoints: Path) -> dict[int, int]:
    """The step that each job went on from, by the token of its lease; empty where no job followed another."""
    try:
        return {int(token): int(step) for token, step in read_json(checkpoints / LINEAGE).items()}
    except (OSError, ValueError, AttributeError, TypeError):  # it appears whole: what is damaged was damaged by hand
        return {}


def is_overtaken(lineage: Mapping[int, int], *, token: int, step: int) -> bool:
    """Whether a job saved this step for nothing: a later one went on from before it."""
    return any(later > token and resumed < step for later, resumed in lineage.items())


def pieces_so_far(run_directory: Path) -> int:
    """How far the links of a preparation have come: `step` is the number of pieces made, as it has no updates."""
    planned = (ExitCode.DONE, ExitCode.CONTINUE)
    ends = (record for record in read_records(run_directory / LEDGER) if record.get("event") == "ended")
    return max((record.get("step") or 0 for record in ends if record.get("exit_code") in planned), default=0)


def record_link(run_directory: Path, *, event: str, link: int, **facts: Any) -> None:
    """Append one event of a link (`submitted`, `started`, `ended`) to the ledger `chain.jsonl`.

    Keys: `submitted`: job_id, seed, argv, commit, dirty. `started`: job_id, host, pid, token, step, seed, config_hash.
    `ended`: exit_code, reason, step, token, train_s, wall_s.
    """
    append_record(run_directory / LEDGER, {"event": event, "link": link, "time": now(), **facts})
