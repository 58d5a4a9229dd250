"""run_context.json and resolved_config.yaml: what a person needs to tell one run from another, without a secret in it.

Both are of the newest link. run_context.json: `timestamp_utc` `pid` `cwd` `argv` `command` `paths` `distributed`
`runtime` `git` `effective` (what became of settings that leave something open). resolved_config.yaml is config.yaml
with the values of keys such as `api_key` taken out.
"""

import os
import platform
import shlex
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from core.distributed import Ranks
from core.runfiles import (
    CONFIG,
    LEDGER,
    METRICS,
    RESOLVED_CONFIG,
    RUN_CONTEXT,
    TRAIN_LOG,
    read_json,
    read_records,
    write_json,
    write_whole,
)
from core.train.git_state import all_facts, git_state
from core.train.scrubbing import scrubbed, scrubbed_argv
from core.yaml_source import dump_yaml


def write_run_context(directory: Path, settings: Mapping[str, Any], *, ranks: Ranks, link: int) -> None:
    """Write both files; on rank 0. `settings`: the resolved configuration as plain values."""
    write_json(directory / RUN_CONTEXT, run_context(directory, ranks=ranks, link=link))
    write_whole(directory / RESOLVED_CONFIG, dump_yaml(scrubbed(dict(settings))))


def note_effective(directory: Path, facts: Mapping[str, Any]) -> None:
    """Add what settings came to, once that is known, to the context that `write_run_context` has written; on rank 0."""
    path = directory / RUN_CONTEXT
    if path.exists():
        context = read_json(path)
        write_json(path, context | {"effective": context.get("effective", {}) | dict(facts)})


def run_context(directory: Path, *, ranks: Ranks, link: int) -> dict[str, Any]:
    argv = scrubbed_argv(sys.argv)
    names = {"config": CONFIG, "resolved_config": RESOLVED_CONFIG, "metrics": METRICS, "train_log": TRAIN_LOG}
    return {
        "timestamp_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "cwd": str(Path.cwd()),
        "argv": argv,
        "command": shlex.join([sys.executable, *argv]),
        "paths": {"run": str(directory), **{name: str(directory / file) for name, file in names.items()}},
        "distributed": {"rank": ranks.rank, "local_rank": ranks.local_rank, "world_size": ranks.world_size},
        "runtime": _runtime(ranks.device),
        "git": _submitted_code(directory, link) or git_state(Path.cwd()),
    }


def _runtime(device: torch.device) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "torch": torch.__version__,
        "deepspeed": _version("deepspeed"),
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _submitted_code(directory: Path, link: int) -> dict[str, Any] | None:
    """The commit that the launcher noted: a link runs in a copy of the code, which is no repository."""
    records = [r for r in read_records(directory / LEDGER) if r.get("event") == "submitted" and r.get("link") == link]
    if not records or not records[-1].get("commit"):
        return None
    commit, dirty = records[-1]["commit"], records[-1].get("dirty")
    return all_facts(available=True, commit_hash=commit, commit_short=commit[:7], dirty=dirty)
