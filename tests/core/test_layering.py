"""The direction of imports: recipes and manifests -> core, launchers -> core.rundir only, and layers inside core.

Imports are read from the source, those inside functions and those for type checking too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Folders of core from the ground up: a file imports its own layer and those before it. What lies in core itself is
# ground, like the first layer.
LAYERS = [
    {"config", "rundir"},
    {"optim", "timing", "losses", "speech", "text"},
    {"models", "samplers", "parallel"},
    {"data", "checkpoint", "report"},
    {"job"},
    {"train"},
    {"recognition", "units"},
    {"bench"},
]
# What a folder of core must not import although the layers would allow it.
APART = {
    "rundir": {"config", "seeding", "distributed"},  # launchers import it
    "losses": {"distributed"},
    "models": {"distributed", "samplers", "parallel"},
    "samplers": {"models", "parallel"},
    "parallel": {"models", "samplers"},
    "data": {"models", "parallel", "checkpoint", "report"},
    "checkpoint": {"models", "samplers", "data"},
    "report": {"models", "samplers", "parallel", "data", "checkpoint"},
    "job": {"models", "samplers", "data"},
    "train": {"models", "samplers", "data"},  # the loop sees them as protocols
    "units": {"models", "recognition"},
    "recognition": {"units"},
}
SECTIONS = ROOT / "core" / "train" / "config.py"  # puts together the sections of a recipe, those of plan and loader too
HEAVY = {"torch", "numpy", "lhotse", "transformers", "deepspeed", "scipy", "sklearn", "matplotlib", "pydantic"}


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def part(path: Path) -> str:
    """The part of core that a file is or belongs to: `config` of core/config/load.py, `train` of core/job/stop.py."""
    return path.relative_to(ROOT / "core").parts[0].removesuffix(".py")


def core_parts(path: Path) -> set[str]:
    """The parts of core that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("core.")}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


GROUND = {path.stem for path in (ROOT / "core").glob("*.py")}
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names} | dict.fromkeys(GROUND, 0)
CORE_FILES = [path for path in files("core") if path != ROOT / "core" / "__init__.py"]


def test_every_folder_of_core_has_its_layer() -> None:
    folders = {path.parent.name for path in (ROOT / "core").glob("*/__init__.py")}
    assert folders == set.union(*LAYERS), "say in LAYERS where a new folder belongs"


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_core_imports_downwards(path: Path) -> None:
    me, imported = part(path), core_parts(path)
    upwards = {name for name in imported if LAYER_OF.get(name, 0) > LAYER_OF[me]}
    assert not upwards, f"{name_of(path)} imports {upwards} of a higher layer"
    if path != SECTIONS:
        assert not imported & APART.get(me, set()), f"{name_of(path)} must not see {imported & APART[me]}"
    roots = {name.partition(".")[0] for name in imports(path)}
    assert not roots & {"recipes", "launchers", "manifests", "tests"}


def test_no_circle_of_imports() -> None:
    paths = [*files("core"), *files("launchers"), *files("recipes")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    imported = {name: set(imports(path)) & modules.keys() for name, path in modules.items()}
    while free := [name for name, others in imported.items() if not others & imported.keys()]:
        for name in free:
            del imported[name]
    assert not imported, "these import one another, directly or by the others"


def test_folders_are_small() -> None:
    """A folder answers one question: more than 13 files answer several."""
    for package in ("core", "launchers"):
        folders = {path.parent for path in files(package)}
        sizes = {name_of(folder): sum(p.name != "__init__.py" for p in folder.glob("*.py")) for folder in folders}
        assert max(sizes.values()) <= 13, sizes


@pytest.mark.parametrize("path", files("core/rundir"), ids=name_of)
def test_the_run_directory_needs_the_standard_library_and_psutil(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imports(path)}
    assert roots <= sys.stdlib_module_names | {"core", "psutil"}
    assert core_parts(path) <= {"rundir"}


@pytest.mark.parametrize("path", files("launchers"), ids=name_of)
def test_launchers_see_the_run_directory_and_nothing_heavy(path: Path) -> None:
    assert core_parts(path) <= {"rundir"}
    roots = {name.partition(".")[0] for name in imports(path)}
    assert not roots & (HEAVY | {"recipes", "manifests", "tests"})


def test_importing_every_launcher_module_pulls_in_nothing_heavy() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files("launchers")]
    importable = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    program = f"import importlib, sys\nfor name in {importable}: importlib.import_module(name)\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in loaded.stdout.split()} & HEAVY


@pytest.mark.parametrize("path", files("recipes"), ids=name_of)
def test_a_recipe_sees_core_and_its_own_folder(path: Path) -> None:
    names = [name.split(".") for name in imports(path)]
    assert not {name[0] for name in names} & {"launchers", "tests"}
    own = path.relative_to(ROOT / "recipes").parts[0]
    others = {name[1] for name in names if name[0] == "recipes" and len(name) > 1} - {own}
    assert not others, f"what {own} and {others} both need belongs in core"


def test_init_files_are_empty() -> None:
    for package in ("core", "launchers", "recipes", "manifests", "tests"):
        for path in (ROOT / package).rglob("__init__.py"):
            assert not path.read_text(encoding="utf-8").strip(), name_of(path)
