"""Why a link ends early: errors that carry the exit code the ledger keeps."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.config.schema import ConfigError
from core.distributed import RendezvousError
from core.rundir.exit_codes import ExitCode

STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}
# torch raises a plain RuntimeError where the host has no memory, and where the driver rather than its allocator fails.
MEMORY_WORDS = ("can't allocate memory", "out of memory", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")


class DataError(RuntimeError):
    """The error of too many bad samples, or of data that is not there."""

    exit_code = ExitCode.DATA


class DivergedError(RuntimeError):
    """The error of many updates in a row without finite gradients."""

    exit_code = ExitCode.DIVERGED


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory of the GPU or the host ran out, on whatever way it was told."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_WORDS)


def exit_code_of(error: BaseException) -> ExitCode:
    """Return what an exception means for the chain; BUG where nobody foresaw it."""
    if isinstance(code := getattr(error, "exit_code", None), ExitCode):
        return code
    if isinstance(error, ConfigError | ValueError):
        return ExitCode.CONFIG
    if isinstance(error, RendezvousError):
        return ExitCode.RENDEZVOUS
    if is_out_of_memory(error):
        return ExitCode.OUT_OF_MEMORY
    if isinstance(error, FileNotFoundError):
        return ExitCode.DATA
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return ExitCode.STORAGE
    return ExitCode.BUG


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End a command that is no job with the exit code and the words of an error that somebody foresaw."""
    try:
        yield
    except Exception as error:
        if (code := exit_code_of(error)) == ExitCode.BUG:
            raise
        print(error, file=sys.stderr)
        raise SystemExit(code) from None


def describe_error(error: BaseException) -> str:
    """Return an exception in one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
