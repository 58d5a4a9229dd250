"""One checkpoint on its way to the disk, in the background: written, hashed, published, or given up, by all ranks."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.checkpoint.hashes import hash_share
from core.distributed import Ranks
from core.rundir import checkpoints as files
from core.rundir.exit_codes import ExitCode
from core.rundir.lease import LeaseHeld, is_fenced
from core.rundir.whole_files import write_whole

logger = logging.getLogger(__name__)
T = TypeVar("T")


class CheckpointError(RuntimeError):
    """The error of a checkpoint that cannot be saved or loaded; the run ends, and nothing that was good is touched."""

    exit_code = ExitCode.STORAGE


class StorageError(CheckpointError):
    """The error of a disk that is full, over quota, read-only or gone."""


@dataclass(frozen=True)
class Save:
    """A save under way. `ranks` vote on a group that nothing else uses meanwhile."""

    directory: Path
    step: int
    token: int
    ranks: Ranks

    @property
    def temporary(self) -> Path:
        return files.temporary_directory(self.directory, step=self.step, token=self.token)

    def finish(self, written: Future[None], *, state_text: str) -> None:
        """Make the checkpoint count, once every rank's weights are `written`. Every rank calls it, in a thread.

        Where something fails on one rank, all ranks remove the save and raise alike: StorageError or CheckpointError.
        """

        def write() -> None:
            written.result()
            if self.ranks.is_first:
                write_whole(self.temporary / files.STATE, state_text)

        def publish() -> None:
            if self.ranks.is_first:
                if is_fenced(self.directory.parent, token=self.token):
                    raise LeaseHeld("another job has taken the run over")
                final = files.final_directory(self.directory, step=self.step)
                files.publish(self.temporary, final, step=self.step, token=self.token, hashes=hashes)

        self._together(write)
        rank, world_size = self.ranks.rank, self.ranks.world_size
        shares = self._together(lambda: hash_share(self.temporary, rank=rank, world_size=world_size))
        hashes = {name: entry for share in shares for name, entry in share.items()}
        self._together(publish)

    def abort(self, reason: str) -> str:
        """Remove what was written, and tell what there is to know. On rank 0 only."""
        try:
            details = self._space()
        except OSError as error:
            details = f"nor can its place be read: {error}"
        shutil.rmtree(self.temporary, ignore_errors=True)
        return f"cannot write {self.temporary}: {reason}; {details}"

    def _space(self) -> str:
        complete = files.list_complete(self.directory)
        if complete:
            needed = f"about {files.size_bytes(complete[-1].directory):,} bytes"
            good = f"the last good checkpoint is {complete[-1].directory}"
        else:
            needed = f"more than {files.size_bytes(self.temporary):,} bytes"
            good = "there is no good checkpoint yet"
        return f"it needs {needed}, {files.free_bytes(self.directory):,} are free; {good}"

    def _together(self, work: Callable[[], T]) -> list[T]:
        """Return what `work` gave on every rank; or raise the failure of one on every rank."""
        result, failure, is_storage = None, None, False
        try:
            result = work()
        except Exception as error:
            where = ", ".join(getattr(error, "__notes__", [])) or f"on rank {self.ranks.rank}"
            failure = f"{type(error).__name__}: {error} ({where})"
            is_storage = isinstance(error, OSError)
            if not is_storage:
                logger.exception("a checkpoint cannot be written")
        outcomes = self.ranks.gather((result, failure, is_storage))
        failures = [text for _, text, _ in outcomes if text is not None]
        if failures:
            message = self.ranks.from_first(self.abort(failures[0]) if self.ranks.is_first else None)
            raise (StorageError if any(outcome[2] for outcome in outcomes) else CheckpointError)(message)
        return [value for value, _, _ in outcomes]
