"""Sections: typed, frozen pieces of configuration, and how values with lines become them.

A section is declared beside the code that it configures. Values are checked one by one, so that every mistake is
reported, each at its own line; a section's own cross-field checks (`__post_init__`) run even when another section
is wrong, and as far as they touch only good values even when their own section is.
"""

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, cast, dataclass_transform, get_args, get_origin

import pydantic
import pydantic.dataclasses

from core.config.yaml_source import Entry, Problem

T = TypeVar("T")
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ConfigError(ValueError):
    """The error of a wrong configuration: `problems`, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field))
def section(cls: type[T]) -> type[T]:
    """Make a class a configuration section: a frozen, keyword-only dataclass with strict types.

    Field types: bool, int, float (takes an int too), str, Literal, list[...], dict[str, ...], `X | None`, another
    section, or a union of sections told apart by a field `kind: Literal["..."]`. Cross-field checks stand in
    `__post_init__` and raise ValueError("key=value must ..."), or ConfigError([...]) for several. A default that is a
    list is written `dataclasses.field(default_factory=lambda: [...])`; `typing.Annotated[float, pydantic.Field(gt=0)]`
    bounds a number.

    `EQUAL: ClassVar = (("a.b", "c.d"), ...)` names keys below the section that must agree: one of a pair may be left
    out and takes the value of the other. `unequal_keys` finds those that were given and differ.
    """
    return cast("type[T]", pydantic.dataclasses.dataclass(cls, config=_STRICT, frozen=True, kw_only=True))


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and pydantic.dataclasses.is_pydantic_dataclass(annotation)


def fields(schema: type) -> dict[str, pydantic.fields.FieldInfo]:
    """Return the fields of a section by name, in the order of their declaration."""
    return schema.__pydantic_fields__  # type: ignore[attr-defined]


def unequal_keys(config: Any) -> list[str]:
    """Return a sentence for each pair of `EQUAL` that differs in a section; keys that it does not have do not count."""
    pairs = ((one, other, _at(config, one), _at(config, other)) for one, other in type(config).EQUAL)
    return [
        f"{one}={value} must equal {other}={of_other}; leave one of them out, or give both the same value"
        for one, other, value, of_other in pairs
        if value != of_other and _ABSENT not in (value, of_other)
    ]


def _at(config: Any, path: str) -> Any:
    """Return the value of a dotted path."""
    for key in path.split("."):
        config = getattr(config, key, _ABSENT)
    return config


_ABSENT = object()


class _Wrong:
    """A value that could not be made."""


_WRONG = _Wrong()


class _UnknownValueError(Exception):
    """The error of a cross-field check that asked for a value that is wrong."""


class Builder:
    """The maker of sections from entries, which collects the problems."""

    def __init__(self, root: type, problems: list[Problem]) -> None:
        self.paths = list(schema_paths(root))
        self.problems = problems

    def section(self, schema: type, entry: Entry, *, path: str) -> Any:
        """Return an instance of `schema`, or a partial one (see `_partial`) where something is wrong."""
        if not isinstance(entry.value, dict):
            expected = _expected(schema)
            self.problems.append(entry.problem(f"{path}: got {_shown(entry)}, expected {expected}"))
            return _WRONG
        before = len(self.problems)
        for one, other in getattr(schema, "EQUAL", ()):
            _follow(schema, entry, one, other)
            _follow(schema, entry, other, one)
        declared = fields(schema)
        for key, value in entry.value.items():
            if key not in declared:
                self.problems.append(
                    value.problem(f"{_join(path, key)}: unknown key; {self._suggest(path, key, declared)}")
                )
        values: dict[str, Any] = {}
        for name, info in declared.items():
            if name in entry.value:
                values[name] = self.value(_annotation(info), entry.value[name], path=_join(path, name))
            elif info.is_required():
                expected = _expected(_annotation(info))
                self.problems.append(entry.problem(f"{_join(path, name)}: missing, expected {expected}"))
                values[name] = _WRONG
        if len(self.problems) > before:
            return self._partial(schema, values, entry, path=path)
        try:
            return schema(**values)
        except pydantic.ValidationError as error:
            for detail in error.errors():
                if detail["loc"]:
                    name = str(detail["loc"][0])
                    self._refuse(entry.value[name], [detail["msg"]], path=_join(path, name))
                else:
                    self._contradiction(detail["ctx"]["error"], entry, path=path)
            return self._partial(schema, values, None, path=path)

    def value(self, annotation: Any, entry: Entry, *, path: str) -> Any:
        """Return the value of one field, checked against its type."""
        members = _members(annotation)
        if entry.value is None and types.NoneType in members:
            return None
        sections = [member for member in members if is_section(member)]
        if sections and (isinstance(entry.value, dict) or len(sections) == len(set(members) - {types.NoneType})):
            schema = sections[0] if len(sections) == 1 else self._member(sections, entry, path=path)
            return _WRONG if schema is None else self.section(schema, entry, path=path)
        before = len(self.problems)
        made = entry.plain()
        for member in members:
            inner = get_args(member)
            if get_origin(member) is list and isinstance(entry.value, list):
                made = [self.value(inner[0], item, path=f"{path}.{i}") for i, item in enumerate(entry.value)]
            elif get_origin(member) is dict and isinstance(entry.value, dict):
                made = {key: self.value(inner[1], item, path=_join(path, key)) for key, item in entry.value.items()}
        return _WRONG if len(self.problems) > before else self._checked(annotation, made, entry, path=path)

    def _checked(self, annotation: Any, made: Any, entry: Entry, *, path: str) -> Any:
        adapter = pydantic.TypeAdapter(annotation, config=None if _has_section(annotation) else _STRICT)
        try:
            return adapter.validate_python(made, strict=True)
        except pydantic.ValidationError as error:
            self._refuse(entry, [detail["msg"] for detail in error.errors()], path=path, choices=_choices(annotation))
            return _WRONG

    def _member(self, sections: list[type], entry: Entry, *, path: str) -> type | None:
        """Return the section of a union that the entry's `kind` names."""
        by_kind = {kind: member for member in sections for kind in get_args(fields(member)["kind"].annotation)}
        kind = entry.value.get("kind") if isinstance(entry.value, dict) else None
        if kind is None:
            known = ", ".join(by_kind)
            self.problems.append(entry.problem(f"{_join(path, 'kind')}: missing, expected one of {known}"))
            return None
        if not isinstance(kind.value, str) or kind.value not in by_kind:
            expected = f"Input should be one of {', '.join(by_kind)}"
            self._refuse(kind, [expected], path=_join(path, "kind"), choices=list(by_kind))
            return None
        return by_kind[kind.value]

    def _refuse(self, entry: Entry, messages: list[str], *, path: str, choices: list[str] | None = None) -> None:
        should_be = "Input should be "
        expected = " or ".join(dict.fromkeys(message.removeprefix(should_be) for message in messages))
        is_type = messages[0].startswith(should_be)
        text = f"{path}: got {_shown(entry)}{', expected' if is_type else ';'} {expected}"
        if choices and (close := difflib.get_close_matches(str(entry.value), choices, n=1)):
            text += f"; did you mean {close[0]}?"
        elif "boolean" in expected:
            text += "; write true or false"
        self.problems.append(entry.problem(text))

    def _suggest(self, path: str, key: str, declared: dict[str, Any]) -> str:
        if close := difflib.get_close_matches(key, list(declared), n=1):
            return f"did you mean {close[0]}?"
        if elsewhere := [p for p in self.paths if p.rpartition(".")[2] == key and p != _join(path, key)]:
            return f"did you mean {' or '.join(elsewhere)}?"
        return f"accepted here: {', '.join(declared)}"

    def _contradiction(self, error: Exception, entry: Entry, *, path: str) -> None:
        """Report what a cross-field check raised, at the line of the first `key=` of its message that is given."""
        for message in getattr(error, "problems", None) or [str(error)]:
            named = re.findall(r"[a-z][a-z0-9_.]*(?==)", message)
            place = next((place for key in named if (place := _look_up(entry, key))), entry)
            self.problems.append(place.problem(f"{path}: {message}" if path else message))

    def _partial(self, schema: type, values: dict[str, Any], entry: Entry | None, *, path: str) -> Any:
        """Return an instance without its wrong values, so that checks which do not need those can still run.

        `entry` is where a contradiction among the good values is reported; None: its checks have run already.
        """
        wrong = {name for name, value in values.items() if value is _WRONG}

        def read(instance: Any, name: str) -> Any:
            if name in wrong:
                raise _UnknownValueError(name)
            return object.__getattribute__(instance, name)

        partial: Any = object.__new__(type(schema.__name__, (schema,), {"__getattribute__": read}))
        for name, info in fields(schema).items():
            given = values[name] if name in values else info.get_default(call_default_factory=True, validated_data={})
            object.__setattr__(partial, name, given)
        if entry is not None and hasattr(schema, "__post_init__"):
            try:
                schema.__post_init__(partial)
            except ValueError as error:
                self._contradiction(error, entry, path=path)
            except Exception:  # it met a wrong value, and that one is reported already
                pass
        return partial


def schema_paths(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all keys of a section and of those inside it."""
    for name, info in fields(schema).items():
        yield prefix + name
        for member in _members(info.annotation):
            if is_section(member):
                yield from schema_paths(member, f"{prefix}{name}.")


def _follow(schema: type, root: Entry, key: str, other: str) -> None:
    """Give `key` the value of `other` where it was left out, in a section that is there or has its defaults."""
    given, entry = _look_up(root, other), root
    if given is None or given.value is None or _look_up(root, key) is not None:
        return
    *path, last = key.split(".")
    for name in path:
        if not isinstance(entry.value, dict) or name not in fields(schema):
            return
        members, child = _members(fields(schema)[name].annotation), entry.value.get(name)
        kind = child.value.get("kind") if child is not None and isinstance(child.value, dict) else None
        sections = [m for m in members if is_section(m) and (kind is None or kind.value in _kinds(m))]
        if len(sections) != 1 or (child is None and len(members) > 1):
            return
        if child is None:
            child = entry.value[name] = Entry({}, given.source, given.line)
        schema, entry = sections[0], child
    if last in fields(schema) and isinstance(entry.value, dict):
        entry.value[last] = given


def _kinds(schema: type) -> tuple[Any, ...]:
    return get_args(fields(schema)["kind"].annotation) if "kind" in fields(schema) else ()


def _look_up(entry: Entry, path: str) -> Entry | None:
    for key in path.split("."):
        if not isinstance(entry.value, dict) or key not in entry.value:
            return None
        entry = entry.value[key]
    return entry


def _annotation(info: pydantic.fields.FieldInfo) -> Any:
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def _members(annotation: Any) -> list[Any]:
    """Return the types of a union, or the one type."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def _has_section(annotation: Any) -> bool:
    return is_section(annotation) or any(_has_section(inner) for inner in get_args(annotation))


def _choices(annotation: Any) -> list[str]:
    literals = [member for member in _members(annotation) if get_origin(member) is Literal]
    return [str(choice) for member in literals for choice in get_args(member)]


def _expected(annotation: Any) -> str:
    """Return a type in words, for a key that is missing."""
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a string", types.NoneType: "null"}
    found = []
    for member in _members(annotation):
        if is_section(member):
            found.append(f"a section with the keys {', '.join(fields(member))}")
        elif choices := _choices(member):
            found.append(f"one of {', '.join(choices)}")
        else:
            found.append(words.get(member, "a list" if get_origin(member) is list else "a mapping"))
    return " or ".join(found)


def _shown(entry: Entry) -> str:
    if isinstance(entry.value, dict):
        return "a section"
    shown = json.dumps(entry.plain(), ensure_ascii=False)
    return shown if len(shown) <= 60 else "a list" if isinstance(entry.value, list) else f"{shown[:56]}..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
