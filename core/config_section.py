"""One section of a YAML file whose other sections do not matter: of the configuration of another run."""

from pathlib import Path
from typing import TypeVar

from core.config_schema import Builder, ConfigError
from core.yaml_source import Problem, read_yaml

T = TypeVar("T")


def load_section(schema: type[T], path: Path, name: str) -> T:
    """The section `name` ("data.features") of a file. Raises ConfigError."""
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
