"""Checkpoints of a run: saved while training goes on, whole or not at all, found damaged before they are loaded.

A save: all ranks copy their share of the state (the engine), go on training, and write, hash and publish it in the
background over a process group of its own; at a step boundary the ranks vote that all are finished (`poll`).
A restore: the newest complete checkpoint whose hashes hold; damaged ones are said and set aside.
What lies on disk: checkpoint_files.py.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import Field

from core.background import in_background
from core.checkpoint.hashes import damage
from core.checkpoint.retention import BestConfig, best_first, removable
from core.checkpoint.saving import CheckpointError, Save, StorageError
from core.config.schema import section
from core.distributed import Ranks
from core.rundir import checkpoints as files
from core.rundir.lease import is_fenced
from core.rundir.whole_files import read_json, write_json

__all__ = ["BestConfig", "CheckpointConfig", "CheckpointError", "CheckpointStore", "Checkpointable", "StorageError"]

logger = logging.getLogger(__name__)
T = TypeVar("T")


@section
class CheckpointConfig:
    """Settings of when to save (every `every_steps`), and what to keep: the last ones, every so many steps, the best by
    a metric or by each of several.

    `asynchronous`: write in the background while training goes on.
    """

    every_steps: Annotated[int, Field(ge=1)] | None = None
    keep_last: Annotated[int, Field(ge=1)] = 2
    keep_every_steps: Annotated[int, Field(ge=1)] | None = None
    keep_best: BestConfig | list[BestConfig] | None = None
    asynchronous: bool = True

    @property
    def rankings(self) -> list[BestConfig]:
        """The metrics by which the best checkpoints are kept."""
        if isinstance(self.keep_best, BestConfig):
            return [self.keep_best]
        return self.keep_best or []


class Checkpointable(Protocol):
    """The part of an engine that is saved and loaded."""

    def save(self, directory: Path) -> Future[None]:
        """Write this rank's share; done when it is on disk. The caller may change the state at once."""

    def load(self, directory: Path, *, weights_only: bool = False) -> None:
        """Read what `save` wrote, at this or another number of ranks."""


class CheckpointStore:
    """The checkpoints of one run. All ranks call every method together, but for `newest`, `newest_step` and `best`."""

    def __init__(self, directory: Path, config: CheckpointConfig, *, ranks: Ranks, token: int) -> None:
        """Take the number of the run's lease as `token`; a later holder has a greater one."""
        self._directory = directory
        self._config = config
        self._ranks = ranks
        self._token = token
        self._metrics: dict[int, dict[str, float]] = {}
        self._under_way: Future[None] | None = None
        self.save_s = 0.0  # from the start of the last save until it was complete: what a stop must leave time for

    def is_due(self, step: int) -> bool:
        return self._config.every_steps is not None and step % self._config.every_steps == 0

    def save(
        self,
        engine: Checkpointable,
        state: Mapping[str, Any],
        *,
        step: int,
        metrics: Mapping[str, float] | None = None,
        wait: bool = False,
    ) -> None:
        """Start saving the run as it is now; a step that is saved already is left alone.

        `state` goes to state.json. `wait`: come back when the checkpoint is complete. An error of this or of the save
        before it (StorageError, CheckpointError) is raised on all ranks alike.
        """
        state_text = json.dumps(state, indent=1, allow_nan=False) + "\n"
        self.wait()
        # The same votes as ours, but on the group of the saves.
        save = Save(self._directory, step, self._token, ranks=replace(self._ranks, votes=self._ranks.saves))
        if self._on_first(lambda: self._begin(save), failed=save.abort):
            self._under_way = self._start(save, engine, state_text)
        if metrics is not None:
            self.record_metrics(step, metrics)
        if wait or not self._config.asynchronous:
            self.wait()

    def poll(self) -> None:
        """Take note of a finished save, at a step boundary. One small vote while a save is under way, else nothing."""
        if self._under_way is not None and self._ranks.all(self._under_way.done()):
            self.wait()

    def wait(self) -> None:
        """Wait until no save is under way; raises what went wrong in it."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def record_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note what else the checkpoint of `step` scored, for keep_best, even while it is being written."""
        if self._ranks.is_first:
            known = self._metrics.get(step, {})
            self._metrics[step] = known | {name: value for name, value in metrics.items() if isfinite(value)}
            self._write_metrics(step)

    def newest(self) -> Path | None:
        newest = files.newest_complete(self._directory)
        return None if newest is None else newest.directory

    def newest_step(self) -> int | None:
        newest = files.newest_complete(self._directory)
        return None if newest is None else newest.step

    def best(self) -> Path | None:
        """Return the best complete checkpoint by keep_best, the first of several; None where nothing is scored."""
        if not self._config.rankings:
            return None
        ranked = best_first(files.list_complete(self._directory), self._config.rankings[0])
        return ranked[0].directory if ranked else None

    def restore(self, engine: Checkpointable) -> dict[str, Any] | None:
        """Load the newest complete checkpoint whose hashes hold, and return its state; None if there never was one.

        CheckpointError where there are checkpoints and none holds, or where one that holds does not fit the engine.
        """
        self.wait()
        candidates, history = self._on_first(self._look, failed=str)
        damaged: list[Path] = []
        for step, name in candidates:
            path = self._directory / name
            if problem := self._damage(path):
                damaged.append(path)
                self._say(f"checkpoint {path} is damaged and not used: {problem}")
                continue
            state = self._load(engine, path, weights_only=False)
            self._set_aside(damaged)
            self._go_on_from(step)
            return state
        if history:
            raise CheckpointError(
                f"{self._directory} has checkpoints, but none can be loaded: {', '.join(history)}; "
                "repair one, or move them away to start over"
            )
        self._go_on_from(0)
        return None

    def load_weights_only(self, engine: Checkpointable, path: Path) -> None:
        """Take the weights, not the optimizer, of any complete checkpoint: for scoring and fine-tuning."""
        if not self._ranks.all((path / files.COMPLETE).exists()):
            raise CheckpointError(f"{path} is not a complete checkpoint: it has no {files.COMPLETE}")
        if problem := self._damage(path):
            raise CheckpointError(f"checkpoint {path} is damaged: {problem}")
        self._load(engine, path, weights_only=True)

    # ---- saving

    def _begin(self, save: Save) -> bool:
        """Make the temporary directory; return False where the step is saved already."""
        if any(checkpoint.step == save.step for checkpoint in files.list_complete(self._directory)):
            return False
        files.make_temporary(save.temporary)
        return True

    def _start(self, save: Save, engine: Checkpointable, state_text: str) -> Future[None]:
        started = time.monotonic()
        try:
            written = engine.save(save.temporary / files.WEIGHTS)
        except OSError as error:  # on this rank; the others learn of it in the background
            written = Future()
            written.set_exception(error)

        def finish() -> None:
            save.finish(written, state_text=state_text)
            self.save_s = time.monotonic() - started
            if self._ranks.is_first:
                self._write_metrics(save.step)
                self._remove_old()

        return in_background(finish, name="checkpoint")

    def _write_metrics(self, step: int) -> None:
        """Write metrics when they come and when a checkpoint is complete, whichever is later."""
        found = next((one for one in files.list_complete(self._directory) if one.step == step), None)
        if step in self._metrics and found is not None and (found.token() or 0) <= self._token:
            try:
                write_json(found.directory / files.METRICS, found.metrics() | self._metrics[step])
            except OSError as error:  # on rank 0 only; the next save tells all of them
                logger.warning("the score of checkpoint %s is not written: %s", found.directory, error)

    def _remove_old(self) -> None:
        """Remove checkpoints once there is a newer one; what cannot be removed stays."""
        if is_fenced(self._directory.parent, token=self._token):
            return  # another job has taken the run over, and goes on from what is there
        complete = files.list_complete(self._directory)
        old = removable(
            complete,
            keep_last=self._config.keep_last,
            keep_every_steps=self._config.keep_every_steps,
            keep_best=self._config.rankings,
        )
        void = [*files.list_unmarked(self._directory), *files.list_overtaken(self._directory)]
        for checkpoint in old + [one for one in void if one.step < complete[-1].step]:
            try:
                files.remove(checkpoint, token=self._token)
            except (OSError, ValueError, KeyError) as error:
                logger.warning("checkpoint %s is not removed: %s", checkpoint.directory, error)

    # ---- loading

    def _look(self) -> tuple[list[tuple[int, str]], list[str]]:
        """Remove what dead processes left; return (step, name) to try, best first, and all names that ever were."""
        for name in files.remove_temporary(self._directory, token=self._token):
            logger.warning("removed %s, which was never finished", self._directory / name)
        for one in files.list_overtaken(self._directory):
            logger.warning("%s is left out: another job had taken the run over before it appeared", one.directory)
        newest_first = reversed(files.list_checkpoints(self._directory))
        # One without a marker may still hold: the process was killed between the rename and the marker.
        found = [(c.step, c.directory.name) for c in sorted(newest_first, key=lambda c: not c.is_complete)]
        return found, [name for _, name in found] + files.list_damaged(self._directory)

    def _damage(self, path: Path) -> str | None:
        """Return the first damage that any rank found; every rank looks at its share."""
        found = self._ranks.gather(damage(path, rank=self._ranks.rank, world_size=self._ranks.world_size))
        return next((f"{problem} (rank {rank})" for rank, problem in enumerate(found) if problem is not None), None)

    def _load(self, engine: Checkpointable, path: Path, *, weights_only: bool) -> dict[str, Any]:
        problem: str | None = None
        cause: Exception | None = None
        state: dict[str, Any] = {}
        try:
            engine.load(path / files.WEIGHTS, weights_only=weights_only)
            state = read_json(path / files.STATE)
        except Exception as error:
            problem, cause = f"{type(error).__name__}: {error}", error
        if problem := next(filter(None, self._ranks.gather(problem)), None):
            raise CheckpointError(f"checkpoint {path} is intact, but cannot be loaded: {problem}") from cause
        return state

    def _go_on_from(self, step: int) -> None:
        self._on_first(lambda: files.go_on_from(self._directory, step=step, token=self._token), failed=str)

    def _set_aside(self, damaged: list[Path]) -> None:
        """Rename a damaged checkpoint, but only once another is loaded: a failing storage must not cost a good one."""
        for path in damaged if self._ranks.is_first else []:
            try:
                logger.warning("%s is now %s: look at it and remove it", path, files.set_aside(path).name)
            except OSError as error:
                logger.warning("%s keeps its name: %s", path, error)

    # ---- all ranks alike

    def _on_first(self, work: Callable[[], T], *, failed: Callable[[str], str]) -> T:
        """Return what `work` gives on rank 0 on every rank; its OSError is a StorageError on every rank."""
        outcome: tuple[T | None, str | None] = (None, None)
        if self._ranks.is_first:
            try:
                outcome = (work(), None)
            except OSError as error:
                outcome = (None, failed(str(error)))
        result, failure = self._ranks.from_first(outcome)
        if failure is not None:
            raise StorageError(failure)
        return result

    def _say(self, text: str) -> None:
        if self._ranks.is_first:
            logger.warning(text)
