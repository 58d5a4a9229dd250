"""YAML as configuration wants it: every value knows its file and line, and nothing is guessed.

The reader takes PyYAML's parser events, which run no code and build no objects, and resolves plain scalars itself:
`3e-4` is a number, `12:00:00` and `no` are strings, only `true` and `false` are booleans. Duplicate keys, tags,
anchors, aliases and merge keys are refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

COMMAND_LINE = "command line"

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_WORDS: dict[str, Any] = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "false": False,
    ".inf": float("inf"),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}


class Problem(NamedTuple):
    """A mistake and its place; `line` is 0 for the command line."""

    source: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.text}" if self.line else f"{self.source}: {self.text}"


@dataclass
class Entry:
    """A value of the file with its place: a scalar, a list of entries or a mapping from keys to entries."""

    value: Any
    source: str
    line: int

    def problem(self, text: str) -> Problem:
        return Problem(self.source, self.line, text)

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value


def resolve(text: str) -> Any:
    """Return what an unquoted scalar means. A number with a leading zero is ambiguous (octal?) and stays a string."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
        return float(text)
    return text


def read_yaml(path: Path, problems: list[Problem]) -> Entry:
    """Read the mapping in a YAML file; what is wrong with it is added to `problems`."""
    empty = Entry({}, str(path), 1)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(Problem(str(path), 0, f"cannot read the configuration: {reason}"))
        return empty
    root = _parse(text, str(path), problems)
    if root.value is None:
        return empty
    if not isinstance(root.value, dict):
        problems.append(root.problem("expected `key: value` lines"))
        return empty
    return root


def read_value(text: str, problems: list[Problem], *, key: str) -> Entry | None:
    """Read the value of a `key=value` override, written in YAML (`[0.9, 0.98]` is a list); None if it is not YAML."""
    found: list[Problem] = []
    entry = _parse(text, COMMAND_LINE, found)
    problems.extend(Problem(COMMAND_LINE, 0, f"{key}: {problem.text} (quote the value)") for problem in found)
    return None if found else _without_lines(entry)


def dump_yaml(content: Any) -> str:
    """Return YAML that `read_yaml` reads back to the same values."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def _without_lines(entry: Entry) -> Entry:
    if isinstance(entry.value, dict):
        entry.value = {key: _without_lines(value) for key, value in entry.value.items()}
    elif isinstance(entry.value, list):
        entry.value = [_without_lines(value) for value in entry.value]
    entry.line = 0
    return entry


def _parse(text: str, source: str, problems: list[Problem]) -> Entry:
    events = (event for event in yaml.parse(text, Loader=yaml.SafeLoader))
    root = Entry(None, source, 1)
    try:
        for event in events:
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            if root.value is not None:
                problems.append(Problem(source, _line(event), "a second YAML document; keep one"))
                break
            root = _compose(next(events), events, source, problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        problems.append(Problem(source, mark.line + 1 if mark else 1, f"not valid YAML: {reason}"))
    except yaml.YAMLError as error:  # a character that YAML forbids
        problems.append(Problem(source, 1, f"not valid YAML: {' '.join(str(error).split())}"))
    return root


def _compose(event: yaml.Event, events: Iterator[yaml.Event], source: str, problems: list[Problem]) -> Entry:
    line = _line(event)
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        problems.append(Problem(source, line, "anchors and aliases are not accepted; write the value out"))
    if tag := getattr(event, "tag", None):
        problems.append(Problem(source, line, f"the YAML tag {tag} is not accepted; write a plain value"))
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_compose(event, events, source, problems))
        return Entry(items, source, line)
    if isinstance(event, yaml.MappingStartEvent):
        return Entry(_compose_mapping(events, source, problems), source, line)
    if isinstance(event, yaml.ScalarEvent):
        return Entry(resolve(event.value) if event.style is None else event.value, source, line)
    return Entry(None, source, line)  # an alias, reported above


def _compose_mapping(events: Iterator[yaml.Event], source: str, problems: list[Problem]) -> dict[str, Entry]:
    mapping: dict[str, Entry] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        line = _line(event)
        name = _compose(event, events, source, problems)
        key = event.value if isinstance(event, yaml.ScalarEvent) else ""
        value = _compose(next(events), events, source, problems)
        value.line = line  # a problem with the value is looked for at its key
        if not key:
            problems.append(Problem(source, line, f"a key must be a plain name, got {name.plain()}"))
        elif key == "<<":
            problems.append(Problem(source, line, "merge keys (<<) are not accepted; write the values out"))
        elif key in mapping:
            problems.append(Problem(source, line, f"duplicate key {key}, first given in line {mapping[key].line}"))
        else:
            mapping[key] = value
    return mapping


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


class _Dumper(yaml.SafeDumper):
    """A style: block mappings, flow lists of scalars, and quotes wherever our reader would not see a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    quoted = not isinstance(resolve(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if quoted else None)


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    is_flat = not any(isinstance(item, list | dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=is_flat)


def _represent_mapping(dumper: yaml.SafeDumper, mapping: dict[str, Any]) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", mapping, flow_style=not mapping)


_Dumper.add_representer(str, _represent_string)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(dict, _represent_mapping)
