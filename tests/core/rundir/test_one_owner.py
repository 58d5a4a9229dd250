"""The run directory has one owner: other modules take names, records and leases from core.rundir."""

import ast
from pathlib import Path

import pytest

from core.rundir import checkpoints, environment, files

ROOT = Path(__file__).parents[3]
TAKEN = {
    *(value for name, value in vars(files).items() if name.isupper() and name not in ("CONFIG", "LOGS", "PROFILE")),
    *(checkpoints.COMPLETE, checkpoints.HASHES, checkpoints.METRICS, checkpoints.STATE),
    *(value for name, value in vars(environment).items() if name.startswith("ENV_") and isinstance(value, str)),
} - {"FAILED", "tensorboard"}  # words of other things as well
OTHERS = [
    path
    for package in ("core", "launchers", "recipes", "manifests")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.parent != ROOT / "core" / "rundir"
]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_names_its_files_or_reads_its_ledger(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            assert node.value not in TAKEN, f"line {node.lineno}: take {node.value!r} from core.rundir"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("read_records", "append_record", "read_json"):
            words = ast.unparse(node)
            assert not {"LEDGER", "METRICS", "LEASE", "LINEAGE"} & {
                name.id for name in ast.walk(node) if isinstance(name, ast.Name)
            }, f"line {node.lineno}: {words}: core.rundir has a reader for that"
