"""run_context.json and resolved_config.yaml: what a person needs to tell one run from another, without a secret in it.

Both are of the newest link. run_context.json: `timestamp_utc` `pid` `cwd` `argv` `command` `paths` `distributed`
`runtime` `git` `effective` (what became of settings that leave something open). resolved_config.yaml is config.yaml
with the values of keys such as `api_key` taken out.
"""

import os
import platform
import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from core.config.yaml_source import dump_yaml
from core.distributed import Ranks
from core.rundir.files import CONFIG, METRICS, RESOLVED_CONFIG, RUN_CONTEXT, TRAIN_LOG
from core.rundir.ledger import read_links
from core.rundir.repository import git_facts, git_state
from core.rundir.whole_files import read_json, write_json, write_whole

HIDDEN = "***"
_WORDS = ("token", "password", "passwd", "passphrase", "secret", "credential", "credentials", "auth", "apikey", "pwd")
_PAIRS = (("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("account", "key"))
# Secrets that show themselves: the login in a URL, a bearer token, keys with the prefix of their maker.
_PLAIN = re.compile(
    r"(?<=://)[^/\s@]+(?=@)|(?<=[Bb]earer )\S+|\b(?:hf_|sk-|ghp_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{16,}"
)


def write_run_context(directory: Path, settings: Mapping[str, Any], *, ranks: Ranks, link: int) -> None:
    """Write both files on rank 0. `settings`: the resolved configuration as plain values."""
    write_json(directory / RUN_CONTEXT, run_context(directory, ranks=ranks, link=link))
    write_whole(directory / RESOLVED_CONFIG, dump_yaml(scrubbed(dict(settings))))


def note_effective(directory: Path, facts: Mapping[str, Any]) -> None:
    """Add what settings came to, once known, to the context that `write_run_context` has written; on rank 0."""
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
        "git": _submitted_code(directory, link) or scrubbed(git_state(Path.cwd())),
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
    """Return the commit that the launcher noted: a link runs in a copy of the code, which is no repository."""
    submitted = next((one.submitted for one in read_links(directory) if one.number == link), {})
    if not submitted.get("commit"):
        return None
    commit, dirty = submitted["commit"], submitted.get("dirty")
    return git_facts(available=True, commit_hash=commit, commit_short=commit[:7], dirty=dirty)


def scrubbed_argv(argv: Sequence[str]) -> list[str]:
    """Return the words of a command line with the values of secrets hidden."""
    found: list[str] = []
    is_value = False  # of the option before
    for word in argv:
        name, equals, _ = word.partition("=")
        is_option = word.startswith("-")
        if is_value and not is_option:
            found.append(HIDDEN)
            is_value = False
            continue
        secret = is_secret(name)
        found.append(f"{name}={HIDDEN}" if equals and secret else _PLAIN.sub(HIDDEN, word))
        is_value = is_option and secret and not equals
    return found


def is_secret(name: str) -> bool:
    """Return whether a key, option or variable of this name is a secret: `api_key`, `--hf-token`, `WANDB_API_KEY`.

    Not `token_ids`, `num_tokens` or `tokenizer`, whose last word is another.
    """
    last = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name.rpartition(".")[2])
    words = [word for word in re.split(r"[^a-z0-9]+", last.lower()) if word]
    return bool(words) and (words[-1] in _WORDS or tuple(words[-2:]) in _PAIRS)


def scrubbed(value: Any) -> Any:
    """Return settings, or a text, with the values of secrets hidden."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if is_secret(str(key)) and isinstance(one, str) else scrubbed(one) for key, one in value.items()
        }
    if isinstance(value, list):
        return [scrubbed(one) for one in value]
    return _PLAIN.sub(HIDDEN, value) if isinstance(value, str) else value
