"""The command that goes on with an unfinished run."""

import shlex
import sys
from pathlib import Path

from core.runfiles import ENV_RUNS, is_started_by_run_sh, link_from_environment, ranks_of_torchrun, runs_root


def restart_command(world_size: int) -> str | None:
    """What to type where this process was started; None where a launcher, srun or a job of many nodes knows better."""
    words = sys.orig_argv
    by_torchrun = ranks_of_torchrun() == world_size
    if link_from_environment()[0] is not None or "-m" not in words or (world_size > 1 and not by_torchrun):
        return None
    module, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    settings = {} if runs_root() == Path("runs").absolute() else {ENV_RUNS: str(runs_root())}
    if is_started_by_run_sh():
        settings["NPROC"] = str(world_size)
        command = ["./run.sh", module.removesuffix(".train").replace(".", "/")]
    elif by_torchrun:
        command = ["torchrun", "--standalone", "--nproc-per-node", str(world_size), "-m", module]
    else:
        command = [words[0], "-m", module]
    assignments = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    return " ".join([*assignments, shlex.join([*command, *arguments])])
