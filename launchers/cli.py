"""The command line of ./launch.sh."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from core.runfiles import ExitCode
from launchers.runs import LaunchError

USAGE = """\
./launch.sh [-n N] [--seed S] [--run NAME] FILE.sub [key=value ...]
       ./launch.sh status [RUN] [--json] | logs RUN [-f] | cancel RUN
       ./launch.sh extend RUN -n N | preflight FILE.sub"""

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
  preflight FILE.sub   check packages, disk, config before a launch
"""


def main(arguments: Sequence[str]) -> int:
    """Run a command; its exit code."""
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
    from launchers.launch import Wish, add_arguments, launch

    parser = argparse.ArgumentParser(
        "./launch.sh", usage=USAGE, description=ABOUT, epilog=COMMANDS, formatter_class=argparse.RawTextHelpFormatter
    )
    add_arguments(parser)
    if not words:
        parser.print_help()
        return int(ExitCode.CONFIG)
    typed = parser.parse_intermixed_args(words)
    if typed.sub.suffix != ".sub":
        near = difflib.get_close_matches(str(typed.sub), _COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise LaunchError(f"{typed.sub}: neither a command nor a .sub file{hint}")
    return launch(Wish(**vars(typed)))


def _status(words: list[str]) -> int:
    from launchers.status import show_all, show_one

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
    from launchers.logs import show_logs

    parser = argparse.ArgumentParser("./launch.sh logs")
    parser.add_argument("run")
    parser.add_argument("-f", dest="follow", action="store_true", help="go on as the log grows")
    parser.add_argument("--link", type=int, help="an earlier link (default: the newest)")
    typed = parser.parse_args(words)
    show_logs(typed.run, link=typed.link, follow=typed.follow)
    return int(ExitCode.DONE)


def _cancel(words: list[str]) -> int:
    from launchers.cancel import cancel

    parser = argparse.ArgumentParser("./launch.sh cancel")
    parser.add_argument("run")
    cancel(parser.parse_args(words).run)
    return int(ExitCode.DONE)


def _extend(words: list[str]) -> int:
    from launchers.launch import extend

    parser = argparse.ArgumentParser("./launch.sh extend")
    parser.add_argument("run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("-n", dest="num_links", type=int, required=True, help="how many more links")
    parser.add_argument("--cluster", choices=["slurm", "local", "debug"])
    typed = parser.parse_intermixed_args(words)
    return extend(typed.run, num_links=typed.num_links, overrides=typed.overrides, cluster=typed.cluster)


def _preflight(words: list[str]) -> int:
    from launchers.preflight import preflight

    parser = argparse.ArgumentParser("./launch.sh preflight")
    parser.add_argument("sub", metavar="FILE.sub", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    typed = parser.parse_args(words)
    return preflight(typed.sub, overrides=typed.overrides)


_COMMANDS = {
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "extend": _extend,
    "preflight": _preflight,
}
