"""Why a link ends early: errors that carry the exit code the ledger keeps."""

import errno

import torch

from core.config import ConfigError
from core.distributed import RendezvousError
from core.runfiles import ExitCode

STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


class DataError(RuntimeError):
    """Too many bad samples, or data that is not there."""

    exit_code = ExitCode.DATA


class DivergedError(RuntimeError):
    """Many updates in a row had no finite gradient."""

    exit_code = ExitCode.DIVERGED


def exit_code_of(error: BaseException) -> ExitCode:
    """What an exception means for the chain; BUG where nobody foresaw it."""
    if isinstance(code := getattr(error, "exit_code", None), ExitCode):
        return code
    if isinstance(error, ConfigError | ValueError):
        return ExitCode.CONFIG
    if isinstance(error, RendezvousError):
        return ExitCode.RENDEZVOUS
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ExitCode.OUT_OF_MEMORY
    if isinstance(error, FileNotFoundError):
        return ExitCode.DATA
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return ExitCode.STORAGE
    return ExitCode.BUG
