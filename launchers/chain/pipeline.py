"""Launching a pipeline: all stages are queued at once, and each begins only if the one before is DONE.

`afterok` would hang for ever behind a time limit, so the links wait for `afterany`, and the first thing that a link
does is to look for the DONE of the stage before: without it, it leaves, and the rest of its stage with it.
"""

from dataclasses import replace
from pathlib import Path

from core.rundir.environment import runs_root
from core.rundir.exit_codes import ExitCode
from core.rundir.files import DONE
from core.rundir.ledger import Event, links_of, read_events
from launchers.chain.launch import PreparedLaunch, announce, prepare_launch, print_submissions, queue_links, start_links
from launchers.chain.pipeline_file import Stage, read_pipeline
from launchers.chain.request import LaunchRequest
from launchers.runs import LaunchError
from launchers.slurm.queue import active, read_queue
from launchers.slurm.refusal import cancel_queued


def launch_pipeline(request: LaunchRequest) -> int:
    """Launch or continue a pipeline; return the exit code."""
    _refuse_what_stands_in_the_file(request)
    name, stages = read_pipeline(request.sub)
    ledgers = {stage.run: read_events(runs_root() / stage.run) for stage in stages}
    _refuse_if_queued(name, ledgers)
    print(f"pipeline {name}: {len(stages)} stages: {', '.join(stage.run for stage in stages)}")
    todo: list[PreparedLaunch] = []
    for number, stage in enumerate(stages):
        mine = _request_of(stage, request, is_first=not todo)
        gate = stages[number - 1].run if number else None
        if (runs_root() / stage.run / DONE).exists():
            print(f"stage {stage.name} is done: run {stage.run}")
        elif prepared := prepare_launch(mine, stage.header, gate=gate, events=ledgers[stage.run]):
            todo.append(prepared)
    if not todo:
        return int(ExitCode.DONE)
    if request.is_dry:
        return _print_submissions(todo)
    if todo[0].run.cluster == "slurm":
        return _queue(todo)
    return _run_locally(todo)


def _refuse_what_stands_in_the_file(request: LaunchRequest) -> None:
    if request.overrides:
        raise LaunchError(f"{request.overrides[0]}: the settings of each stage stand in {request.sub}")
    if request.num_links != 1 or request.run is not None:
        raise LaunchError(f"-n and --run: the links of each stage, and the name, stand in {request.sub}")


def _refuse_if_queued(name: str, ledgers: dict[str, list[Event]]) -> None:
    for run, events in ledgers.items():
        links = links_of(events)
        if active(read_queue(links), links):
            raise LaunchError(
                f"pipeline {name} is queued already; look with ./launch.sh status {run}, "
                f"stop with ./launch.sh cancel {run}"
            )


def _request_of(stage: Stage, request: LaunchRequest, *, is_first: bool) -> LaunchRequest:
    """Return what a person would type for a stage alone. The first that is to be done waits for `--after`."""
    return replace(
        request,
        sub=stage.header.path,
        run=stage.run,
        num_links=stage.num_links,
        overrides=stage.settings,
        after=request.after if is_first else None,
    )


def _print_submissions(todo: list[PreparedLaunch]) -> int:
    for number, prepared in enumerate(todo):
        announce(prepared)
        if number and prepared.run.cluster == "slurm":
            prepared = replace(prepared, after=f"<last job of {todo[number - 1].run.directory.name}>")
        print_submissions(prepared)
    return int(ExitCode.DONE)


def _queue(todo: list[PreparedLaunch]) -> int:
    """Queue all stages or none: what sbatch has taken is given back where it refuses a later one."""
    queued: list[tuple[Path, list[tuple[int, str]]]] = []
    after = todo[0].after
    for prepared in todo:
        announce(prepared)
        try:
            jobs = queue_links(prepared, after=after)
        except LaunchError as error:
            words = [str(error)]
            if not prepared.request.keep_queued:
                because = f"stage {prepared.run.directory.name} was refused"
                words += [f"{run.name}: {cancel_queued(run, mine, because=because)}" for run, mine in queued]
            raise LaunchError("\n".join(words)) from None
        queued.append((prepared.run.directory, jobs))
        after = jobs[-1][1]
    print(f"look with   ./launch.sh status\nstop with   ./launch.sh cancel {todo[0].run.directory.name}")
    return int(ExitCode.DONE)


def _run_locally(todo: list[PreparedLaunch]) -> int:
    """Do one stage after the other, for as long as each is done."""
    for prepared in todo:
        announce(prepared)
        code = start_links(prepared)
        if not (prepared.run.directory / DONE).exists():
            print(f"the pipeline stops: {prepared.run.directory.name} is not done; the same command goes on there")
            return code
    return int(ExitCode.DONE)
