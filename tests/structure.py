"""How core and launchers are laid out: files and lines by folder, and the files of core that one other file imports.

python -m tests.structure [CHECKOUT]        of this checkout, or of another to compare with
"""

import ast
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def folders(root: Path) -> dict[str, tuple[int, int]]:
    """(files, lines) of each folder of core and launchers, empty `__init__.py` left out."""
    files, lines = Counter[str](), Counter[str]()
    for path in (path for package in ("core", "launchers") for path in (root / package).rglob("*.py")):
        if path.name != "__init__.py":
            folder = str(path.parent.relative_to(root))
            files[folder] += 1
            lines[folder] += len(path.read_text(encoding="utf-8").splitlines())
    return {folder: (files[folder], lines[folder]) for folder in sorted(files)}


def importers(root: Path) -> dict[str, set[str]]:
    """The modules of core, recipes, launchers, manifests and slurm that import each module of core."""
    packages = ("core", "recipes", "launchers", "manifests", "slurm")
    paths = [path for package in packages for path in (root / package).rglob("*.py") if path.name != "__init__.py"]
    modules = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            else:
                continue
            for other in imported & modules.keys():
                found[other].add(name)
    return {name: found[name] for name in modules if name.startswith("core.")}


def imported_once(root: Path) -> list[str]:
    """The modules of core that exactly one other module imports."""
    return sorted(name for name, others in importers(root).items() if len(others) == 1)


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    table = folders(where)
    for folder, (num_files, num_lines) in table.items():
        print(f"{folder:28}{num_files:4}{num_lines:8,}")
    totals = [sum(column) for column in zip(*table.values(), strict=True)]
    print(f"{'all':28}{totals[0]:4}{totals[1]:8,}\nimported by one file: {len(imported_once(where))}")
