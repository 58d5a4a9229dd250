"""The smallest recipe, as CONTRIBUTING.md shows it, is a recipe: it learns, resumes exactly, and runs on two ranks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.rundir.exit_codes import ExitCode
from core.rundir.files import METRICS
from core.rundir.metrics_log import read_metrics
from launchers.here.environment import ROOT
from tests.recipes import runs

RECIPE = Path("recipes") / "languages"
NUM_LINES = 100
# Of the 50 held-out clips 42 are English: what a guess gets right.
MAJORITY = 42 / 50


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a recipe needs, with the files that CONTRIBUTING.md shows in it."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("core", "manifests"):
        (root / name).symlink_to(ROOT / name)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^`(recipes/languages/\S+)`:\n+```\w+\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    assert sorted(Path(name).name for name in files) == ["tiny.yaml", "train.py", "train_blend.yaml"]
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    (root / "recipes/__init__.py").touch()
    (root / RECIPE / "__init__.py").touch()
    return root


def train(checkout: Path, folder: Path, *settings: str, ranks: int = 1) -> Path:
    """Run the recipe to the end of a link; the run directory."""
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={runs.free_port()}"]
    command = [sys.executable, *(start if ranks > 1 else []), "-m", "recipes.languages.train", *settings]
    env = os.environ | {"BATON_RUNS": str(folder), "OMP_NUM_THREADS": "1"}
    common = ["loader.num_workers=0", "loggers.tensorboard=false", "run.record_samples=true", "train.log_every_steps=1"]
    done = subprocess.run([*command, *common], cwd=checkout, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode in (ExitCode.DONE, ExitCode.CONTINUE), done.stdout + done.stderr
    return folder / "languages"


@pytest.fixture(scope="module")
def whole(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(checkout, tmp_path_factory.mktemp("whole"))


def test_it_is_small_and_passes_the_checks(checkout: Path) -> None:
    shown = [path for path in (checkout / RECIPE).iterdir() if path.name != "__init__.py" and path.is_file()]
    assert sum(len(path.read_text().splitlines()) for path in shown) <= NUM_LINES
    for command in (["check"], ["format", "--check"]):
        options = ["--config", str(ROOT / "pyproject.toml"), str(RECIPE / "train.py")]
        subprocess.run([sys.executable, "-m", "ruff", *command, *options], cwd=checkout, check=True)


def test_it_tells_the_languages_apart(whole: Path) -> None:
    valid = [record["valid_accuracy"] for record in read_metrics(whole / METRICS) if record["phase"] == "valid"]
    assert len(valid) == 3 and valid[-1] > MAJORITY + 0.1


def test_it_goes_on_exactly(checkout: Path, whole: Path, tmp_path: Path) -> None:
    for _ in range(3):
        cut = train(checkout, tmp_path, "run.link_steps=25")
    assert runs.losses(cut) == runs.losses(whole) and len(runs.losses(whole)) == 60
    runs.assert_same_state(runs.state(cut), runs.state(whole))


def test_two_ranks_do_what_one_does(checkout: Path, whole: Path, tmp_path: Path) -> None:
    run = train(checkout, tmp_path, "train.max_steps=6", "train.validate_every_steps=null", ranks=2)
    assert runs.samples(run) == runs.samples(whole)[:6]
    assert runs.losses(run) == pytest.approx(runs.losses(whole)[:6], rel=1e-4)
