"""Does a Python environment have what Baton needs? Only the standard library, and no package is imported to find out.

`python -m launchers.here.environment [dev]` prints what is missing and exits 1; `dev` adds what ./test.sh needs.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED_PYTHONS = ((3, 11), (3, 12))


class Requirement(NamedTuple):
    """One line such as `torch>=2.11,<2.14`."""

    name: str
    bounds: list[tuple[str, tuple[int, ...]]]

    @property
    def range(self) -> str:
        return ",".join(operator + ".".join(map(str, bound)) for operator, bound in self.bounds)

    def accepts(self, version: str) -> bool:
        """Tell whether a version is inside the bounds; a local part such as `+cpu` does not count."""
        found = release(version)
        comparisons = {
            ">=": lambda bound: found >= bound,
            "<": lambda bound: found < bound,
            "==": lambda bound: found == bound,
            "!=": lambda bound: found != bound,
        }
        return all(comparisons[operator](bound) for operator, bound in self.bounds)


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version without trailing zeros: `2.13.0+cpu` -> (2, 13)."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def parse_requirement(line: str) -> Requirement:
    """Read `name>=1.2,<2`. ValueError for anything this project does not write."""
    match = re.fullmatch(r"([A-Za-z0-9._-]+?)\s*((?:(?:>=|<|==|!=)[\w.]+,?)*)", line.strip())
    if not match:
        raise ValueError(f"cannot read the requirement {line!r}; write it as name>=1.2,<2")
    bounds = re.findall(r"(>=|<|==|!=)([\w.]+)", match.group(2))
    return Requirement(match.group(1), [(operator, release(version)) for operator, version in bounds])


def requirements(*extras: str, pyproject: Path = ROOT / "pyproject.toml") -> list[Requirement]:
    """Return what pyproject.toml asks for, with the named extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [parse_requirement(line) for line in lines]


def missing(*extras: str) -> list[str]:
    """Return what this interpreter's environment lacks, in words; empty when Baton can run in it."""
    problems = []
    if sys.version_info[:2] not in SUPPORTED_PYTHONS:
        problems.append(f"Python {sys.version_info[0]}.{sys.version_info[1]} (3.11 or 3.12 is needed)")
    for requirement in requirements(*extras):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(requirement.name)
            continue
        if not requirement.accepts(version):
            problems.append(f"{requirement.name} {version} ({requirement.range} is needed)")
    return problems


if __name__ == "__main__":
    lacking = missing(*sys.argv[1:])
    print(", ".join(lacking))
    sys.exit(1 if lacking else 0)
