"""The command line of ./launch.sh."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from core.rundir.exit_codes import ExitCode
from launchers.runs import LaunchError

USAGE = """\
./launch.sh [-n N] [--seed S] [--run NAME] FILE.sub [key=value ...]
       ./launch.sh status [RUN] [--json] | logs RUN [-f] | cancel RUN
       ./launch.sh extend RUN -n N | compare RUN RUN ... | preflight FILE.sub
       ./launch.sh sweep FILE.sub key=a,b ... | ./launch.sh pipeline.yaml
       ./launch.sh bench ab|sweep|both|summarize|diagnose --config FILE.yaml"""

ABOUT = """\
Launches a run as a chain of N consecutive jobs ("links"); each goes on exactly
where the one before stopped. On SLURM where one answers, else on this machine.
An unfinished run is continued, a finished one is left alone.
"""

COMMANDS = """\
commands:
  status [RUN]         all runs, or the links, state and results of one
  logs RUN [-f]        what its newest link printed; -f goes on
  cancel RUN           stop it for good: running links save first
  extend RUN -n N      N more links, also after cancel
  compare RUN RUN ...  runs side by side, or all of a sweep: table and picture
  sweep FILE.sub k=a,b one run for every combination of the values
  bench VERB ...       suites of short runs: A/B test, sweep, best settings
  preflight FILE.sub   check environment, paths, disk, nodes before a launch
  completion SHELL     print a script that completes all this (bash, zsh)
"""


def main(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code."""
    os.umask(0o077)  # runs are their owner's
    words = list(arguments)
    try:
        if words and words[0] in _COMMANDS:
            return _COMMANDS[words[0]](words[1:])
        return _launch(words)
    except LaunchError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe has left
        sys.stderr.close()
        return int(ExitCode.DONE)
    except KeyboardInterrupt:
        return 130


def _launch(words: list[str]) -> int:
    from launchers.chain.launch import launch
    from launchers.chain.request import LaunchRequest, add_arguments

    parser = argparse.ArgumentParser(
        "./launch.sh", usage=USAGE, description=ABOUT, epilog=COMMANDS, formatter_class=argparse.RawTextHelpFormatter
    )
    add_arguments(parser)
    if not words:
        parser.print_help()
        return int(ExitCode.CONFIG)
    typed = parser.parse_intermixed_args(words)
    if typed.sub.suffix in (".yaml", ".yml"):
        from launchers.chain.pipeline import launch_pipeline

        return launch_pipeline(LaunchRequest(**vars(typed)))
    if typed.sub.suffix != ".sub":
        near = difflib.get_close_matches(str(typed.sub), _COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise LaunchError(f"{typed.sub}: neither a command nor a .sub or pipeline .yaml file{hint}")
    return launch(LaunchRequest(**vars(typed)))


def _status(words: list[str]) -> int:
    from launchers.show.status import show_all, show_one

    parser = argparse.ArgumentParser("./launch.sh status")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--json", dest="as_json", action="store_true", help="for programs")
    typed = parser.parse_args(words)
    if typed.run is None:
        show_all(as_json=typed.as_json)
    else:
        show_one(typed.run, as_json=typed.as_json)
    return int(ExitCode.DONE)


def _logs(words: list[str]) -> int:
    from launchers.show.logs import show_logs

    parser = argparse.ArgumentParser("./launch.sh logs")
    parser.add_argument("run")
    parser.add_argument("-f", dest="follow", action="store_true", help="go on as the log grows")
    parser.add_argument("--link", type=int, help="an earlier link (default: the newest)")
    typed = parser.parse_args(words)
    show_logs(typed.run, link=typed.link, follow=typed.follow)
    return int(ExitCode.DONE)


def _cancel(words: list[str]) -> int:
    from launchers.chain.cancel import cancel

    parser = argparse.ArgumentParser("./launch.sh cancel")
    parser.add_argument("run", help="a run, or a sweep with all its runs")
    cancel(parser.parse_args(words).run)
    return int(ExitCode.DONE)


def _extend(words: list[str]) -> int:
    from launchers.chain.launch import extend
    from launchers.chain.request import positive_int

    parser = argparse.ArgumentParser("./launch.sh extend")
    parser.add_argument("run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("-n", dest="num_links", type=positive_int, required=True, help="how many more links")
    parser.add_argument("--cluster", choices=["slurm", "local", "debug"])
    parser.add_argument("--live", dest="is_live", action="store_true", help="run the checkout itself")
    typed = vars(parser.parse_intermixed_args(words))
    return extend(typed.pop("run"), **typed)


def _compare(words: list[str]) -> int:
    from launchers.show.compare import compare

    parser = argparse.ArgumentParser("./launch.sh compare")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run, or a sweep with all its runs")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="where the curves go (default: with the runs)")
    parser.add_argument("--json", dest="as_json", action="store_true", help="for programs")
    typed = parser.parse_args(words)
    return compare(typed.runs, picture=typed.picture, as_json=typed.as_json)


def _sweep(words: list[str]) -> int:
    from launchers.chain.request import LaunchRequest, add_arguments
    from launchers.chain.sweep import sweep

    parser = argparse.ArgumentParser("./launch.sh sweep", description="One run for every combination of the values.")
    add_arguments(parser)
    return sweep(LaunchRequest(**vars(parser.parse_intermixed_args(words))))


def _bench(words: list[str]) -> int:
    """Become the benchmark, which reads configurations and draws: what a launcher does not import."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "core.bench", *words])


def _completion(words: list[str]) -> int:
    from launchers.show.completion import completion_script

    parser = argparse.ArgumentParser("./launch.sh completion")
    parser.add_argument("shell", choices=["bash", "zsh"])
    print(completion_script(parser.parse_args(words).shell))
    return int(ExitCode.DONE)


def _preflight(words: list[str]) -> int:
    from launchers.here.preflight import preflight

    parser = argparse.ArgumentParser("./launch.sh preflight")
    parser.add_argument("sub", metavar="FILE.sub", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--here", dest="only_here", action="store_true", help="leave the nodes out")
    parser.add_argument(
        "--wait", dest="wait_s", type=float, default=60.0, metavar="S", help="seconds in the queue (60)"
    )
    typed = parser.parse_intermixed_args(words)
    return preflight(typed.sub, overrides=typed.overrides, only_here=typed.only_here, wait_s=typed.wait_s)


_COMMANDS = {
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "extend": _extend,
    "compare": _compare,
    "sweep": _sweep,
    "bench": _bench,
    "preflight": _preflight,
    "completion": _completion,
}
COMMAND_NAMES = tuple(_COMMANDS)
