"""One link of many runs as one SLURM job array, and the job that compares the runs at the end."""

import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmJob

from core.rundir.environment import ENV_RUNS
from launchers.chain.submission import BatchExecutor, LaunchedRun, slurm_parameters

# What a job must say wherever it runs; the rest of a header are resources that a comparison does not need.
PLACE = ("account", "clusters", "constraint", "partition", "qos", "reservation")


class ArrayExecutor(BatchExecutor):
    """submitit's job array, with sbatch asked as for a single job: submitit itself starts another executor for it."""

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[SlurmJob[Any]]:
        pickles = []
        self.folder.mkdir(parents=True, exist_ok=True)
        for delayed in delayed_submissions:
            pickles.append(self.folder / f"{uuid.uuid4().hex}.pkl")
            delayed.dump(pickles[-1])
        self.parameters["map_count"] = len(pickles)
        first = self._submit_command(self._submitit_command_str)
        jobs = [SlurmJob(folder=self.folder, job_id=f"{first.job_id}_{i}", tasks=[0]) for i in range(len(pickles))]
        for job, path in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(path, "submitted_pickle")
        return jobs


def submit_array(runs: Sequence[tuple[LaunchedRun, int]], *, name: str, folder: Path, after: str | None) -> list[str]:
    """Submit a link of each run with the resources of the first; return the job id of each. SlurmError if refused."""
    calls = [run.call(number) for run, number in runs]
    delayed = [DelayedSubmission(*positional, **keywords) for positional, keywords in calls]
    executor = _executor(runs, name=name, folder=folder, after=after)
    return [str(job.job_id) for job in executor._internal_process_submissions(delayed)]


def array_text(runs: Sequence[tuple[LaunchedRun, int]], *, name: str, folder: Path, after: str | None) -> str:
    """Return the batch script that `submit_array` hands to sbatch, and below it what each of its tasks runs."""
    executor = _executor(runs, name=name, folder=folder, after=after)
    executor.parameters["map_count"] = len(runs)
    text = executor._make_submission_file_text(executor._submitit_command_str, "NUMBER")
    tasks = [f"# task {place}: {run.command(number)}\n" for place, (run, number) in enumerate(runs)]
    return "".join([text, *tasks])


def _executor(runs: Sequence[tuple[LaunchedRun, int]], *, name: str, folder: Path, after: str | None) -> ArrayExecutor:
    executor = ArrayExecutor(folder=folder)
    first, link = runs[0]
    named = replace(first, directory=first.directory.with_name(name))
    executor.update_parameters(**slurm_parameters(named, link, after=after))
    return executor


def comparison_script(name: str, run: LaunchedRun, options: Mapping[str, str], *, output: Path, after: str) -> str:
    """Return a batch script that waits for a job and compares the runs of a sweep."""
    lines = {
        **{key: value for key, value in options.items() if key in PLACE},
        "job-name": f"{name}-compare"[:64],
        "ntasks": "1",
        "time": "10",
        "dependency": f"afterany:{after}",
        "output": str(output),
    }
    header = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in lines.items()]
    settings = {ENV_RUNS: str(run.directory.parent), "PYTHONPATH": run.python_path}
    exports = [f"export {key}={shlex.quote(value)}" for key, value in settings.items()]
    picture = shlex.quote(str(output.with_suffix(".png")))
    command = f"exec {shlex.quote(sys.executable)} -P -m launchers compare {name} --picture {picture}"
    return "\n".join(["#!/bin/bash", *header, *exports, command, ""])
