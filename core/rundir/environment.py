"""What a launcher tells the processes of a link by environment variables. They are read here and nowhere else."""

import os
from pathlib import Path

ENV_RUNS = "BATON_RUNS"
ENV_LINK = "BATON_LINK"
ENV_LINK_SEED = "BATON_LINK_SEED"
ENV_GATE = "BATON_GATE"  # the run that must be done before this one may begin: a pipeline's stage before
ENV_LOCAL_TASKS = "BATON_LOCAL_TASKS"  # ranks on this machine, where run.sh or a launcher starts them
ENV_DEADLINES = ("BATON_DEADLINE", "SLURM_JOB_END_TIME")  # seconds since the epoch
ENV_JOBS = ("SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID")


def runs_root() -> Path:
    """Return where run directories live: `$BATON_RUNS`, else `runs` under the current directory."""
    return Path(os.environ.get(ENV_RUNS) or "runs").absolute()


def link_from_environment() -> tuple[int | None, int | None]:
    """Return (number of this link, its seed) as the launcher handed them over; None where there is no launcher."""
    link, seed = os.environ.get(ENV_LINK), os.environ.get(ENV_LINK_SEED)
    return (int(link) if link else None), (int(seed) if seed else None)


def deadline_from_environment() -> float | None:
    """Return when the job ends, in seconds since the epoch; None where nothing says so."""
    found = [value for name in ENV_DEADLINES if (value := os.environ.get(name))]
    return float(found[0]) if found else None


def job_from_environment() -> str:
    """Return the id of the job that this process belongs to; its own process id where there is none."""
    found = [value for name in ENV_JOBS if (value := os.environ.get(name))]
    return found[0] if found else f"process-{os.getpid()}"


def slurm_job() -> str | None:
    """Return the id of the SLURM job that this process belongs to; None outside of SLURM."""
    return os.environ.get("SLURM_JOB_ID")


def is_started_by_run_sh() -> bool:
    """Tell whether a person typed ./run.sh, so that no launcher says how to go on."""
    return ENV_LINK not in os.environ and ENV_LOCAL_TASKS in os.environ


def ranks_of_torchrun() -> int | None:
    """Return how many ranks torchrun started on this machine; None where it did not."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE")
    return int(ranks) if ranks else None
