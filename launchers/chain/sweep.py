"""`sweep`: one run for every combination of some settings, as job arrays or one after another here.

    ./launch.sh sweep FILE.sub optim.lr=1e-3,3e-3 model.encoder.dropout=0.1,0.2

Link 1 of all runs is one job array, link 2 another that waits for it, and so on. The last job compares the runs.
"""

import itertools
from dataclasses import replace
from pathlib import Path

from core.rundir.exit_codes import ExitCode
from core.rundir.files import LOGS
from core.rundir.ledger import link_logs
from launchers.chain.chain import lock_run, record_submission
from launchers.chain.launch import (
    PreparedLaunch,
    prepare_directory,
    prepare_launch,
    print_submissions,
    read_header_of,
    start_links,
)
from launchers.chain.request import LaunchRequest
from launchers.chain.submission import LaunchedRun
from launchers.chain.sweep_file import read_sweep, sweep_directory, sweep_runs, write_sweep
from launchers.runs import LaunchError, valid_name
from launchers.show.compare import compare
from launchers.slurm.commands import SlurmError
from launchers.slurm.commands import submit as submit_script
from launchers.slurm.header import Header
from launchers.slurm.job_array import array_text, comparison_script, submit_array
from launchers.slurm.refusal import cancel_queued

LARGEST = 1000
COMPARISON = "comparison.png"


def sweep(request: LaunchRequest) -> int:
    """Launch or continue the runs of a sweep; return the exit code."""
    header = read_header_of(request.sub)
    grid, common = split_grid(request.overrides)
    name = valid_name(request.run or f"{header.job_name}_sweep")
    names = [valid_name(f"{name}-{number}") for number in range(1, len(grid) + 1)]
    content = {
        "sub": str(header.path),
        "runs": [{"run": run, "settings": point} for run, point in zip(names, grid, strict=True)],
    }
    before = read_sweep(name)
    if before is not None and sweep_runs(name) and before["runs"] != content["runs"]:
        raise LaunchError(f"sweep {name} was begun with other values; --run NAME starts another")
    found = [
        prepare_launch(replace(request, run=run, overrides=[*common, *point]), header)
        for run, point in zip(names, grid, strict=True)
    ]
    todo = [prepared for prepared in found if prepared is not None]
    done = f", {len(grid) - len(todo)} of them done" if len(todo) < len(grid) else ""
    print(f"sweep {name}: {len(grid)} runs{done}")
    for run, point in zip(names, grid, strict=True):
        print(f"  {run}: {' '.join(point)}")
    if request.is_dry:
        _print_submissions(name, todo, header)
        return int(ExitCode.DONE)
    write_sweep(name, content)
    if todo and todo[0].run.cluster == "slurm":
        with lock_run(sweep_directory(name)):
            _queue(name, todo, header)
        return int(ExitCode.DONE)
    for prepared in todo:
        code = start_links(prepared)
        if code not in (ExitCode.DONE, ExitCode.CONTINUE):
            print(f"run {prepared.run.directory.name} failed; the sweep goes on")
    return compare([name], picture=sweep_directory(name) / COMPARISON, as_json=False)


def split_grid(overrides: list[str]) -> tuple[list[list[str]], list[str]]:
    """Return the points of the grid, and the settings that all runs share. LaunchError where nothing is swept."""
    axes, common = [], []
    for word in overrides:
        key, _, value = word.partition("=")
        values = split_values(value)
        if len(values) > 1:
            axes.append([f"{key}={one}" for one in values])
        else:
            common.append(word)
    grid = [list(point) for point in itertools.product(*axes)]
    if len(grid) < 2:
        raise LaunchError("a sweep needs a setting with several values, e.g. optim.lr=1e-3,3e-3")
    if len(grid) > LARGEST:
        raise LaunchError(f"that would be {len(grid)} runs; at most {LARGEST} are started at once")
    return grid, common


def split_values(text: str) -> list[str]:
    """Split `a,b` into a and b; commas inside brackets or quotes belong to a value: `[0.9,0.98],[0.9,0.95]`."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif character == "," and depth == 0:
            values.append("")
            continue
        values[-1] += character
    return values


def _print_submissions(name: str, todo: list[PreparedLaunch], header: Header) -> None:
    """Print what would be done: on SLURM the arrays and the comparison, here one run after the other."""
    if not todo or todo[0].run.cluster != "slurm":
        for prepared in todo:
            print_submissions(prepared)
        return
    firsts, after = [prepared.first for prepared in todo], _after(todo)
    for link in range(todo[0].request.num_links):
        runs = [(prepared.run, first + link) for prepared, first in zip(todo, firsts, strict=True)]
        print(f"---- link {link + 1} of each of {len(todo)} runs: a job array")
        print(array_text(runs, name=name, folder=_folder(name, link, firsts), after=after))
        after = f"<job array of link {link + 1}>"
    assert after is not None, "there is at least one link"
    print("---- the comparison")
    print(comparison_script(name, todo[0].run, header.options, output=_output(name), after=after))


def _after(todo: list[PreparedLaunch]) -> str | None:
    """Return the jobs that the first array waits for."""
    jobs = (job for one in todo if one.after is not None for job in one.after.split(":"))
    return ":".join(dict.fromkeys(jobs)) or None


def _folder(name: str, link: int, firsts: list[int]) -> Path:
    """Return the folder of the logs of an array: `link`, from 0, of this launch."""
    return link_logs(sweep_directory(name), link + min(firsts))


def _output(name: str) -> Path:
    return (sweep_directory(name) / COMPARISON).with_suffix(".txt")


def _queue(name: str, todo: list[PreparedLaunch], header: Header) -> None:
    """Queue one array a link, each after the one before, and the comparison after the last. All or nothing."""
    for prepared in todo:
        prepare_directory(prepared)
    firsts = [prepared.first for prepared in todo]
    queued: list[list[tuple[int, str]]] = [[] for _ in todo]
    after = _after(todo)
    for link in range(todo[0].request.num_links):
        folder = _folder(name, link, firsts)
        runs = [(prepared.run, first + link) for prepared, first in zip(todo, firsts, strict=True)]
        try:
            jobs = submit_array(runs, name=name, folder=folder, after=after)
        except SlurmError as error:
            words = ["the sweep is not submitted; SLURM says:", *(f"  {line}" for line in str(error).splitlines())]
            for prepared, mine in zip(todo, queued, strict=True):
                if mine and not prepared.request.keep_queued:
                    words.append(cancel_queued(prepared.run.directory, mine, because="a later array was refused"))
            raise LaunchError("\n".join(words)) from None
        for (run, number), first, mine, job in zip(runs, firsts, queued, jobs, strict=True):
            log = folder / f"{job}_0_log.out"
            record_submission(run, number, first=first, job_id=job, log=log)
            mine.append((number, job))
        after = jobs[0].partition("_")[0]  # a dependency on an array waits for all of it
        print(f"  link {link + 1} of each: job array {after}", flush=True)
    assert after is not None, "there is at least one link"
    _queue_comparison(name, todo[0].run, header, after=after)
    print(f"look with     ./launch.sh status\ncompare with  ./launch.sh compare {name}")


def _queue_comparison(name: str, run: LaunchedRun, header: Header, *, after: str) -> None:
    """Queue the job at the end. Where SLURM does not take it, the sweep is no worse for that."""
    script = sweep_directory(name) / LOGS / "comparison.sh"
    output = _output(name)
    script.write_text(comparison_script(name, run, header.options, output=output, after=after))
    try:
        print(f"  comparison: job {submit_script(script)}, in {output}")
    except SlurmError as error:
        print(f"  no comparison is queued, as SLURM says: {error}; type it when the runs are done")
