"""Launching a pipeline: all stages are queued at once, and each begins only if the one before is DONE.

`afterok` would hang for ever behind a time limit, so the links wait for `afterany`, and the first thing that a link
does is to look for the DONE of the stage before: without it, it leaves, and the rest of its stage with it.
"""

from dataclasses import replace
from pathlib import Path

from core.rundir.files import DONE, ExitCode, runs_root
from core.rundir.ledger import read_links
from launchers.chain.chain import alone, queue_on_slurm
from launchers.chain.launch import (
    Prepared,
    make_ready,
    prepare,
    say,
    show,
    start,
)
from launchers.chain.pipeline_file import Stage, read_pipeline
from launchers.chain.wish import Wish
from launchers.runs import LaunchError
from launchers.slurm.queue import active, read_queue
from launchers.slurm.refusal import take_back


def launch_pipeline(wish: Wish) -> int:
    """Launch or continue a pipeline; the exit code."""
    _refuse_what_stands_in_the_file(wish)
    name, stages = read_pipeline(wish.sub)
    _refuse_if_queued(name, stages)
    print(f"pipeline {name}: {len(stages)} stages: {', '.join(stage.run for stage in stages)}")
    todo: list[Prepared] = []
    for number, stage in enumerate(stages):
        mine = replace(
            wish, sub=stage.header.path, run=stage.run, num_links=stage.num_links, overrides=stage.settings, after=None
        )
        mine.after = wish.after if not todo else None
        gate = stages[number - 1].run if number else None
        if (runs_root() / stage.run / DONE).exists():
            print(f"stage {stage.name} is done: run {stage.run}")
        elif (prepared := prepare(mine, stage.header, gate=gate)) is not None:
            todo.append(prepared)
    if not todo:
        return int(ExitCode.DONE)
    if wish.is_dry:
        return _show(todo)
    if todo[0].run.cluster == "slurm":
        return _queue(todo)
    return _work_here(todo)


def _refuse_what_stands_in_the_file(wish: Wish) -> None:
    if wish.overrides:
        raise LaunchError(f"{wish.overrides[0]}: the settings of each stage stand in {wish.sub}")
    if wish.num_links != 1 or wish.run is not None:
        raise LaunchError(f"-n and --run: the links of each stage, and the name, stand in {wish.sub}")


def _refuse_if_queued(name: str, stages: list[Stage]) -> None:
    for stage in stages:
        links = read_links(runs_root() / stage.run)
        if active(read_queue(links), links):
            raise LaunchError(
                f"pipeline {name} is queued already; look with ./launch.sh status {stage.run}, "
                f"stop with ./launch.sh cancel {stage.run}"
            )


def _show(todo: list[Prepared]) -> int:
    for number, prepared in enumerate(todo):
        say(prepared)
        if number and prepared.run.cluster == "slurm":
            prepared = replace(prepared, after=f"<last job of {todo[number - 1].run.directory.name}>")
        show(prepared)
    return int(ExitCode.DONE)


def _queue(todo: list[Prepared]) -> int:
    """All stages or none: what sbatch has taken is given back where it refuses a later one."""
    queued: list[tuple[Path, list[tuple[int, str]]]] = []
    after = todo[0].after
    for prepared in todo:
        say(prepared)
        wish = prepared.wish
        try:
            with alone(prepared.run.directory):
                make_ready(prepared)
                jobs = queue_on_slurm(prepared.run, wish.num_links, after=after, keep_queued=wish.keep_queued)
        except LaunchError as error:
            words = [str(error)]
            if not wish.keep_queued:
                because = f"stage {prepared.run.directory.name} was refused"
                words += [f"{run.name}: {take_back(run, mine, because=because)}" for run, mine in queued]
            raise LaunchError("\n".join(words)) from None
        queued.append((prepared.run.directory, jobs))
        after = jobs[-1][1]
    print(f"look with   ./launch.sh status\nstop with   ./launch.sh cancel {todo[0].run.directory.name}")
    return int(ExitCode.DONE)


def _work_here(todo: list[Prepared]) -> int:
    """One stage after the other, for as long as each is done."""
    for prepared in todo:
        say(prepared)
        code = start(prepared)
        if not (prepared.run.directory / DONE).exists():
            print(f"the pipeline stops: {prepared.run.directory.name} is not done; the same command goes on there")
            return code
    return int(ExitCode.DONE)
