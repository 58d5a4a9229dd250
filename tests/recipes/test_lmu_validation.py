"""Validation on one manifest and on a blend of several."""

from pathlib import Path

from core.rundir.exit_codes import ExitCode
from core.rundir.files import METRICS
from core.rundir.whole_files import read_records
from tests.recipes import runs


def _validated(config: Path, root: Path, valid: Path) -> dict[str, float]:
    words = ("train.max_steps=1", "train.validate_every_steps=1", "run.link_steps=1", f"data.valid={valid}")
    codes, text = runs.link(config, root / valid.stem, *words)
    assert codes == [ExitCode.DONE], text
    [record] = [record for record in read_records(root / valid.stem / "tiny" / METRICS) if record["phase"] == "valid"]
    return {name: value for name, value in record.items() if name.startswith("valid_") and "second" not in name}


def test_every_clip_of_a_blend_once_whatever_its_weight(config: Path, tmp_path: Path) -> None:
    dev, test, both = config.parent / "dev.jsonl", config.parent / "test.jsonl", tmp_path / "both.yaml"
    both.write_text(f"sources:\n  - {{manifest: {dev}, weight: 5}}\n  - {{manifest: {test}}}\n")
    alone = tmp_path / "alone.yaml"
    alone.write_text(f"sources:\n  - {{manifest: {dev}, weight: 5}}\n")
    found = {path.stem: _validated(config, tmp_path, path) for path in (dev, alone, test, both)}
    assert found["alone"] == found["dev"]
    low, high = sorted(found[name]["valid_loss"] for name in ("dev", "test"))
    assert low < found["both"]["valid_loss"] < high
