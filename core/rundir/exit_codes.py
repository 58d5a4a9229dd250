"""What the exit code of a link means. The ledger keeps the number itself."""

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of a link."""

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


PLANNED = (ExitCode.DONE, ExitCode.CONTINUE)
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


def describe_exit(code: int | None) -> str:
    """Return the meaning of an exit code in words, also where a signal ended the process."""
    if code is None:
        return "ended without a word"
    if code < 0 or 128 < code <= 128 + 64:  # as Python and as a shell report it
        return f"killed by signal {-code if code < 0 else code - 128}"
    return EXIT_WORDS.get(code, f"exit code {code}")
