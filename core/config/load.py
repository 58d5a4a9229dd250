"""Configuration: one YAML file and `key=value` overrides become one typed, frozen object, or every mistake at once.

    @section
    class Config:                       # in a recipe: composed of the sections that core declares beside its code
        optim: OptimConfig
        steps: int

    config = parse_args(Config, prog="train", description=__doc__, default_config=Path(__file__).parent / "config.yaml")

Mistakes read `config.yaml:7: optim.lr: got "fast", expected a valid number`.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from core.config.schema import Builder, ConfigError
from core.config.yaml_source import COMMAND_LINE, Entry, Problem, dump_yaml, read_value, read_yaml
from core.rundir.exit_codes import ExitCode

T = TypeVar("T")


def load(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file with `section.key=value` overrides; of equal overrides the last counts.

    Raises ConfigError with all problems: of the file in the order of its lines, then of the command line.
    """
    problems: list[Problem] = []
    root = read_yaml(path, problems)
    if not any(problem.line == 0 for problem in problems):  # a file that cannot be read would miss every key
        for override in overrides:
            _apply(root, override, problems)
        config = Builder(schema, problems).section(schema, root, path="")
    if problems:
        raise ConfigError([str(p) for p in sorted(problems, key=lambda p: (p.source == COMMAND_LINE, p.line))])
    assert isinstance(config, schema)
    return config


def load_section(schema: type[T], path: Path, name: str) -> T:
    """Read the section `name` ("data.features") of a file. Raises ConfigError."""
    problems: list[Problem] = []
    entry = read_yaml(path, problems)
    for key in name.split("."):
        if not isinstance(entry.value, dict) or key not in entry.value:
            problems.append(entry.problem(f"{name}: there is no such section"))
            break
        entry = entry.value[key]
    else:
        config = Builder(schema, problems).section(schema, entry, path=name)
    if problems:
        raise ConfigError([str(problem) for problem in problems])
    assert isinstance(config, schema)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain dicts, lists and scalars."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML, complete with all defaults; `load` reads it back equal."""
    return dump_yaml(to_dict(config))


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what changed between two `to_dict`s, one line a key: `optim.lr: 0.001 -> 0.002`."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [*after, *(key for key in before if key not in after)]
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]


def parse_args(
    schema: type[T], *, argv: Sequence[str] | None = None, prog: str, description: str | None, default_config: Path
) -> T:
    """Return the configuration that a command line asks for.

    `--config FILE` (default: `default_config`), `--check` (print the resolved YAML and exit with 0) and
    `section.key=value` overrides. What is wrong goes to stderr, all of it, and the exit code is 85.
    """
    parser = _Parser(prog=prog, description=description, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--config", type=Path, default=default_config, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optim.lr=3e-4")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load(schema, arguments.config, arguments.overrides)
    except ConfigError as error:
        parser.error("\n".join(error.problems))
    if arguments.check:
        print(to_yaml(config), end="")
        sys.exit(ExitCode.DONE)
    return config


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(message, file=sys.stderr)
        sys.exit(ExitCode.CONFIG)


def _apply(root: Entry, override: str, problems: list[Problem]) -> None:
    """Set one `section.key=value` in the tree; keys that the schema lacks are found when it is built."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        problems.append(Problem(COMMAND_LINE, 0, f"got {override}, expected section.key=value"))
        return
    value = read_value(text, problems, key=key)
    if value is None:
        return
    *parents, last = key.split(".")
    place = root
    for depth, name in enumerate(parents):
        if isinstance(place.value, dict):
            inner = place.value.get(name)
            if inner is None or inner.value is None:  # the file leaves this section out
                inner = place.value[name] = Entry({}, COMMAND_LINE, 0)
            place = inner
        elif isinstance(place.value, list) and name.isdigit() and int(name) < len(place.value):
            place = place.value[int(name)]
        else:
            problems.append(_no_such_place(key, parents[:depth], place))
            return
    if isinstance(place.value, dict):
        place.value[last] = value
    elif isinstance(place.value, list) and last.isdigit() and int(last) < len(place.value):
        place.value[int(last)] = value
    else:
        problems.append(_no_such_place(key, parents, place))


def _no_such_place(key: str, parents: list[str], place: Entry) -> Problem:
    parent = ".".join(parents)
    what = f"a list of {len(place.value)}, counted from 0" if isinstance(place.value, list) else "not a section"
    return Problem(COMMAND_LINE, 0, f"{key}: no such place; {parent} is {what}")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, scalar or list of scalars) of everything in a tree; an empty section counts as a value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = list(enumerate(value))
    if not items:
        yield path, value
    for key, item in items:
        yield from _flat(item, f"{path}.{key}" if path else str(key))
