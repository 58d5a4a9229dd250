"""Finds out that a rank hangs, which one and in what, while its main thread cannot: exit code 86.

A thread of each rank looks at its own place. Where that has not moved for too long, the rank is stuck: it waits for
another one, or hangs itself. It says so in its file, adds its stacks, and waits for the others to do the same.
Who does not answer, or else who has entered the fewest phases, is the one that hung. Nothing here needs the ranks to
meet. Training must move within max(3 x the 99th percentile of step times, 120 s); validation and the first steps, which
may compile, within 8 minutes; a save within an hour, as long as its own process group waits.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Annotated

import psutil
from pydantic import Field

from core.config.schema import section
from core.distributed import COLLECTIVE_TIMEOUT_S, SAVE_TIMEOUT_S
from core.job.rank_files import RankFile, RankState, ask_for_stacks
from core.rundir.exit_codes import ExitCode
from core.timing.phases import Phases

logger = logging.getLogger(__name__)

LEAST_LIMIT_S = 120.0
SLOW_PHASE_S = 0.8 * COLLECTIVE_TIMEOUT_S  # before the others give up waiting with an error that names nobody
ANSWER_S = 10.0  # how long to wait for what the others say
STACKS_S = 0.2  # for others to write theirs
LAST_WORDS_S = 3.0  # how long to leave to the rank that speaks: a job may be killed as soon as one rank is gone
NUM_NAMED = 8  # ranks that the message names


@section
class WatchdogConfig:
    """Settings of the watchdog. `limit_s`: how long a rank may stay in one phase before the job ends with exit code 86.

    null: 3 x the 99th percentile of step times, at least 120 s.
    """

    limit_s: Annotated[float, Field(gt=0)] | None = None


class Watchdog:
    """A context around training. `on_hang(reason)` is called on one rank, in a thread, before all leave."""

    def __init__(
        self,
        config: WatchdogConfig,
        phases: Phases,
        file: RankFile,
        *,
        world_size: int,
        on_hang: Callable[[str], object],
    ) -> None:
        self._config, self._phases, self._file = config, phases, file
        self._world_size = world_size
        self._on_hang = on_hang
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._limit_s / 20):
            self._file.write()
            place = self._phases.current
            allowed_s = self._allowed_s(place.phase)
            if allowed_s is not None and time.monotonic() - place.since > allowed_s:
                self._report_hang(place.entered)

    @property
    def _limit_s(self) -> float:
        if self._config.limit_s is not None:
            return self._config.limit_s
        return max(3 * (self._phases.longest_usual_step_s() or 0.0), LEAST_LIMIT_S)

    @property
    def _answer_s(self) -> float:
        return min(ANSWER_S, self._limit_s / 4)

    def _allowed_s(self, phase: str) -> float | None:
        """Return how long this rank may be in `phase`; in a step such that a hang is named within the limit."""
        if phase == "outside":
            return None
        if phase == "save":
            return SAVE_TIMEOUT_S
        if phase == "validate" or self._phases.longest_usual_step_s() is None:
            return max(self._limit_s, SLOW_PHASE_S)
        return self._limit_s - self._answer_s

    def _report_hang(self, entered: int) -> None:
        """Find out who hung, since this rank is stuck, and leave; or go on where it was slow and moved after all."""
        me = self._file.write(is_stuck=True)
        self._file.write_stacks()
        end = time.monotonic() + self._answer_s
        others = self._file.read_others()
        while sum(state.is_stuck for state in others) < self._world_size - 1 and time.monotonic() < end:
            time.sleep(0.1)
            others = self._file.read_others()
        if self._phases.current.entered != entered:
            return
        stuck = [me, *(state for state in others if state.is_stuck)]
        silent = [state for state in others if not state.is_stuck]
        workers = psutil.Process().children(recursive=True)
        here = [state.rank for state in stuck if state.host == me.host]
        mute = [state.process_here() for state in silent] if me.rank == min(here) else []
        for process in [*workers, *filter(None, mute)]:
            ask_for_stacks(process)
        time.sleep(STACKS_S)
        for worker in workers:
            with contextlib.suppress(psutil.Error):
                worker.kill()  # one that hangs would outlive this process
        if me.rank == min(state.rank for state in stuck):
            reason = f"{describe_hang(stuck, silent, world_size=self._world_size)}; stacks in {self._file.directory}"
            logger.error("%s", reason)
            self._on_hang(reason)
        else:
            time.sleep(LAST_WORDS_S)
        os._exit(ExitCode.HANG)  # the main thread cannot be woken


def describe_hang(stuck: Sequence[RankState], silent: Sequence[RankState], *, world_size: int) -> str:
    """Tell who hung, and in what, in words: who is silent, or else who is behind, for the others wait for it."""
    if unknown := sorted(set(range(world_size)) - {state.rank for state in [*stuck, *silent]}):
        return f"ranks {unknown[:NUM_NAMED]} of {world_size} told nothing, and the others wait for them"
    behind = min(state.entered for state in stuck)
    hung = silent or [state for state in stuck if state.entered == behind]
    named = [_describe(state) for state in hung[:NUM_NAMED]]
    if len(hung) > NUM_NAMED:
        named.append(f"{len(hung) - NUM_NAMED} more")
    if waiting := [state for state in stuck if state not in hung]:
        named.append(f"{len(waiting)} of {world_size} ranks wait in {waiting[0].phase} of step {waiting[0].step}")
    return "; ".join(named)


def _describe(state: RankState) -> str:
    who = f"rank {state.rank} ({state.host}, process {state.pid})"
    if state.exit_code is not None:
        return f"{who} failed in {state.phase} of step {state.step}: {state.reason}"
    text = f"{who} hung in {state.phase} of step {state.step}"
    if state.is_stuck:
        return f"{text} for {state.since_s:.0f} s"
    condition = state.condition()
    return f"{text}: {f'{condition}, ' if condition else ''}last seen {time.time() - state.seen:.0f} s ago"
