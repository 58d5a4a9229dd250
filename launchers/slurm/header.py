"""The `#SBATCH` lines of a .sub file: the only statement of a run's resources, read as sbatch reads them."""

import difflib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

SHORT = {
    "A": "account", "b": "begin", "B": "extra-node-info", "c": "cpus-per-task", "C": "constraint", "d": "dependency",
    "D": "chdir", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "i": "input", "J": "job-name",
    "k": "no-kill", "L": "licenses", "m": "distribution", "M": "clusters", "n": "ntasks", "N": "nodes",
    "o": "output", "O": "overcommit", "p": "partition", "q": "qos", "s": "oversubscribe", "S": "core-spec",
    "t": "time", "w": "nodelist", "x": "exclude",
}  # fmt: skip

FLAGS = frozenset(
    "contiguous exclusive get-user-env hold ignore-pbs no-kill no-requeue overcommit oversubscribe reboot requeue "
    "spread-job use-min-nodes".split()
)  # need no value; some may have one

VALUED = frozenset(
    "account acctg-freq batch bb bbf begin chdir cluster-constraint clusters comment constraint container core-spec "
    "cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot distribution error exclude export "
    "export-file extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres "
    "gres-flags hint input job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind "
    "mem-per-cpu mem-per-gpu mincpus network nice nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu "
    "ntasks-per-node ntasks-per-socket open-mode output partition power prefer priority profile propagate qos "
    "reservation segment signal sockets-per-node switches thread-spec threads-per-core time time-min tmp "
    "tres-per-task uid wckey".split()
)

OURS = {
    "array": "a chain is consecutive jobs; use -n",
    "dependency": "the chain sets it; use --after JOBID",
    "wrap": "a .sub file has its own commands",
    "parsable": "the launcher reads sbatch's answer itself",
    "test-only": "use --dry-run",
    "wait": "the launcher does not wait on SLURM; look with: ./launch.sh status RUN",
}


class HeaderError(ValueError):
    """All that is wrong with a header, one `file:line: problem` each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Header:
    """The options of a .sub file under their long names; a flag has the value ""."""

    path: Path
    options: Mapping[str, str]

    @property
    def job_name(self) -> str:
        return self.options["job-name"]

    @property
    def num_nodes(self) -> int:
        """The least number of nodes of `--nodes=2` or `--nodes=2-4`."""
        return int(self.options.get("nodes", "1").split("-")[0])

    @property
    def tasks_per_node(self) -> int:
        if "ntasks-per-node" in self.options:
            return int(self.options["ntasks-per-node"])
        if "ntasks" in self.options:
            return -(-int(self.options["ntasks"]) // self.num_nodes)
        if "ntasks-per-gpu" in self.options:
            return int(self.options["ntasks-per-gpu"]) * self.gpus_per_node
        return 1

    @property
    def gpus_per_node(self) -> int:
        """The number from --gpus-per-node, --gres=gpu:.., --gpus or --gpus-per-task; 0 where none is asked for."""
        if "gpus-per-node" in self.options:
            return _count(self.options["gpus-per-node"])
        for resource in self.options.get("gres", "").split(","):
            if resource.split(":")[0] == "gpu":
                return _count(resource.partition(":")[2] or "1")
        if "gpus" in self.options:
            return -(-_count(self.options["gpus"]) // self.num_nodes)
        if "gpus-per-task" in self.options:
            return _count(self.options["gpus-per-task"]) * self.tasks_per_node
        return 0

    @property
    def time_limit_s(self) -> int | None:
        """The time limit; None where nothing limits the job."""
        return parse_time(self.options["time"]) if "time" in self.options else None


def _count(value: str) -> int:
    """Read `4`, `a100:4` or `a100:2,v100:2` as 4."""
    return sum(int(part.split(":")[-1]) for part in value.split(","))


def parse_time(text: str) -> int | None:
    """Read SLURM's time formats as seconds: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; UNLIMITED as None. Else ValueError."""
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError(f"time={text}: expected minutes, hours:minutes:seconds, or days-hours:minutes:seconds")
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is not None:
        return days * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return (first or 0) * 3600 + (second or 0) * 60 + third
    return (first or 0) * 60 + (second or 0)


def read_header(path: Path) -> Header:
    """Read a .sub file. HeaderError lists every mistake; FileNotFoundError if there is no such file."""
    options: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise HeaderError([f"{path}:1: not a text in UTF-8"]) from None
    if "\r\n" in text:
        problems.append(f"{path}:1: its lines end as on Windows, which sbatch and bash refuse; mend it with: dos2unix")
    if not text.startswith("#!"):
        problems.append(f"{path}:1: expected `#!/bin/bash`: sbatch takes no script without")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            break  # the first command ends the header
        if not line.startswith("#SBATCH"):
            continue
        try:
            found = _parse_line(line)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        for name, value in found:
            if options.get(name, value) != value:
                problems.append(f"{path}:{number}: --{name}={value}: line {lines[name]} says {options[name]}")
            options[name], lines[name] = value, number
    problems += [f"{path}:{lines[name]}: {problem}" for name, problem in _check_values(path, options)]
    if "job-name" not in options:
        problems.append(f"{path}:1: no job name; add a line such as: #SBATCH --job-name={path.stem}")
    if problems:
        raise HeaderError(problems)
    return Header(path, options)


def _parse_line(line: str) -> list[tuple[str, str]]:
    """Return the (long name, value) pairs of one #SBATCH line."""
    if not line.startswith(("#SBATCH ", "#SBATCH\t")):
        raise ValueError(f"{line.strip()!r}: expected `#SBATCH --option=value`")
    try:
        words = shlex.split(line[len("#SBATCH") :], comments=True)
    except ValueError as error:
        raise ValueError(f"{line.strip()!r}: {str(error).lower()}") from None
    if not words:
        raise ValueError(f"{line.strip()!r}: expected `#SBATCH --option=value`")
    pairs = []
    while words:
        word = words.pop(0)
        name, value = _split_option(word)
        if value is None and name in VALUED:
            if not words or words[0].startswith("-"):
                raise ValueError(f"{word}: a value is missing")
            value = words.pop(0)
        pairs.append((name, value or ""))
    return pairs


def _split_option(word: str) -> tuple[str, str | None]:
    """Split `--time=1:00` or `-t1:00` into ("time", "1:00"); the value is None where it must follow."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        given = value if equals else None
    elif word.startswith("-") and len(word) > 1:
        short = word[1]
        if short not in SHORT:
            raise ValueError(f"{word}: unknown option; sbatch's long names are clearer, e.g. --time=01:00:00")
        name, given = SHORT[short], word[2:].removeprefix("=") or None
    else:
        raise ValueError(f"{word!r}: expected an option such as --time=01:00:00")
    if name in OURS:
        raise ValueError(f"--{name}: {OURS[name]}")
    if name not in FLAGS and name not in VALUED:
        near = difflib.get_close_matches(name, FLAGS | VALUED, n=1)
        raise ValueError(f"--{name}: unknown option" + (f"; did you mean --{near[0]}?" if near else ""))
    if given == "" and name in VALUED:
        raise ValueError(f"--{name}: a value is missing")
    return name, given


def _check_values(path: Path, options: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return mistakes in the values that the launcher itself must understand."""
    problems = []
    if "job-name" in options and not NAME.fullmatch(options["job-name"]):
        problem = f"--job-name={options['job-name']!r}: only letters, digits and . _ - (64 at most), as it names files"
        problems.append(("job-name", problem))
    if "signal" in options and not re.fullmatch(r"([RB]*:)?\w+(@\d+)?", options["signal"]):
        problems.append(("signal", f"--signal={options['signal']}: expected e.g. USR1@120"))
    header = Header(path, options)
    for names, read in (
        (("time",), lambda: header.time_limit_s),
        (("nodes",), lambda: header.num_nodes),
        (("ntasks-per-node", "ntasks", "ntasks-per-gpu"), lambda: header.tasks_per_node),
        (("gpus-per-node", "gres", "gpus", "gpus-per-task"), lambda: header.gpus_per_node),
    ):
        given = [name for name in names if name in options]
        try:
            read()
        except ValueError as error:
            detail = str(error) if str(error).startswith("time=") else f"{given[0]}={options[given[0]]}: not a number"
            problems.append((given[0], f"--{detail}"))
    return problems
