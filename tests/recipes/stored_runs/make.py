"""Make the stored runs: begin tiny runs with the code of an earlier commit, and note how they go on.

git worktree add /tmp/baton 99e83ee
python tests/recipes/stored_runs/make.py /tmp/baton

Of each NAME.yaml in this folder come NAME.tar.xz, the run directory after two links of two steps (and that of its
labels), and NAME.json, the losses and samples of the six steps of a run that was never cut, and what its scores are
called. They belong together: make both on the same machine. Only the standard library is used, so that nothing of
today's code gets in.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORK = Path("data", "stored_runs")  # in the checkout, where git ignores it
DONE, CONTINUE = 0, 75
LEFT_OUT = (".png", ".html")  # pictures, which no later link reads


def main(checkout: Path) -> None:
    shutil.rmtree(checkout / WORK, ignore_errors=True)
    for config in sorted(HERE.glob("*.yaml")):
        make(config, checkout)


def make(config: Path, checkout: Path) -> None:
    """Write the archive and the expected numbers of one configuration; its name is that of the recipe."""
    recipe, cut, whole = config.stem, WORK / config.stem / "cut", WORK / config.stem / "whole"
    (checkout / cut).mkdir(parents=True)
    shutil.copy(config, checkout / WORK)

    def link(module: str, runs: Path, *overrides: str, code: int) -> None:
        words = ["--config", str(WORK / config.name), *overrides]
        env = os.environ | {"BATON_RUNS": str(runs), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", f"recipes.{recipe}.{module}", *words], cwd=checkout, env=env)
        if done.returncode != code:
            raise SystemExit(f"{module} of {recipe} ended with {done.returncode} in place of {code}")

    if "\n  labels: labels\n" in config.read_text(encoding="utf-8"):
        link("prepare", cut, "run.name=labels", "run.link_steps=null", code=DONE)
    shutil.copytree(checkout / cut, checkout / whole)
    for _ in range(2):
        link("train", cut, code=CONTINUE)
    link("train", whole, "run.link_steps=null", code=DONE)
    scores = json.loads((checkout / whole / "tiny" / "scores.json").read_text(encoding="utf-8"))
    expected = {"losses": losses(checkout / whole), "samples": samples(checkout / whole), "scores": list(scores)}
    if losses(checkout / cut) != expected["losses"][:4]:
        raise SystemExit(f"{recipe}: the cut run is not the whole one")
    (HERE / f"{recipe}.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    pack(checkout / cut, HERE / f"{recipe}.tar.xz")


def losses(runs: Path) -> list[float]:
    return [record["loss"] for record in _records(runs / "tiny" / "metrics.jsonl") if record["phase"] == "train"]


def samples(runs: Path) -> list[Any]:
    """Return the sample ids of each step."""
    return [record["micro_batches"] for record in _records(runs / "tiny" / "samples.jsonl")]


def pack(folder: Path, archive: Path) -> None:
    """Pack all files of a folder, pictures aside, in order of their names and without times and owners."""
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in LEFT_OUT):
            entry = tarfile.TarInfo(str(file.relative_to(folder)))
            entry.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(entry, content)


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
