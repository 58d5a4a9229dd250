"""What is submitted, word for word, for each .sub file of the recipes."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from launchers.chain.submission import LaunchedRun, link_seed, slurm_parameters, submission_text
from launchers.here.environment import ROOT
from launchers.slurm.header import Header, read_header

SUBS = sorted(ROOT.glob("recipes/*/*.sub"))
CHAINS = [sub for sub in SUBS if sub.stem != "bench"]  # which is one run of a job array, and starts its own ranks

# RECIPE_FILE.txt: what sbatch gets, with @WORDS@ for what differs by machine
GOLDEN = Path(__file__).parents[1] / "golden"


def as_submitted(sub: Path, folder: Path) -> str:
    """Link 3 of a run of `sub`, behind job 41, with @WORDS@ for what differs by machine."""
    code = folder / ".code" / "ab12"
    run = LaunchedRun(folder / "my-run", read_header(sub), ["a.b=$(x) y"], seed_base=9, cluster="slurm", code=code)
    text = submission_text(run, 3, after="41")
    text = text.replace(f"\n{shlex.quote(sys.executable)} ", "\n@PYTHON@ ")  # quoted where its path has a space
    words = {sys.executable: "@PYTHON@", str(code): "@CODE@", str(folder): "@RUNS@", str(link_seed(9, 3)): "@SEED@"}
    for value, word in words.items():
        text = text.replace(value, word)
    return text


@pytest.mark.parametrize("sub", SUBS, ids=[f"{sub.parent.name}/{sub.stem}" for sub in SUBS])
def test_golden_text_of_a_link_on_slurm(
    sub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With --write-golden the text is written; a person reads it before it is committed."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:/elsewhere")
    text = as_submitted(sub, tmp_path)
    golden = GOLDEN / f"{sub.parent.name}_{sub.stem}.txt"
    if request.config.getoption("--write-golden"):
        golden.write_text(text, encoding="utf-8")
    assert golden.exists(), f"{golden} is missing: add --write-golden, and read what it writes:\n{text}"
    assert text == golden.read_text(encoding="utf-8")


def test_every_golden_text_belongs_to_a_file() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {f"{sub.parent.name}_{sub.stem}" for sub in SUBS}


@pytest.mark.parametrize("sub", CHAINS, ids=[f"{sub.parent.name}/{sub.stem}" for sub in CHAINS])
def test_every_sub_file_states_what_a_chain_needs(sub: Path) -> None:
    header = read_header(sub)
    assert header.time_limit_s
    assert header.options["signal"].startswith("USR1@"), "the ranks get it (without B:), in time to save"
    assert {"requeue", "mem", "cpus-per-task"} <= header.options.keys()
    assert header.gpus_per_node in (0, header.tasks_per_node), "one rank a GPU"
    body = [line for line in sub.read_text().splitlines() if line and not line.startswith("#")]
    assert body[0] == "source slurm/env.sh"
    name = sub.parent.name
    assert re.match(rf"srun python -m recipes\.{name}\.(train|prepare|finetune) --config recipes/{name}/", body[-1])
    assert body[-1].endswith(' "$@"')


def test_the_header_wins_and_nothing_else_is_asked_for(tmp_path: Path) -> None:
    header = Header(tmp_path / "x.sub", {"job-name": "x", "ntasks": "16", "output": "mine.out", "exclusive": ""})
    run = LaunchedRun(tmp_path / "other", header, [], seed_base="other", cluster="slurm")
    lines = {line for line in submission_text(run, 1, after=None).splitlines() if line.startswith("#SBATCH")}
    assert lines == {
        "#SBATCH --exclusive",
        "#SBATCH --job-name=other",
        "#SBATCH --ntasks=16",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={tmp_path}/other/logs/link_1/%j_0_log.out",
        "#SBATCH --signal=USR2@90",  # submitit always writes one; a .sub with its own wins
    }
    assert slurm_parameters(run, 1, after=None)["use_srun"] is False


def test_local_links_get_their_ranks_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    header = Header(tmp_path / "x.sub", {"job-name": "x", "ntasks-per-node": "2", "gpus-per-node": "2"})
    command = LaunchedRun(tmp_path / "x", header, ["k=v"], seed_base=1, cluster="local").command(1)
    assert command[:1] == ["env"]
    assert {"BATON_LOCAL_TASKS=2", "CUDA_VISIBLE_DEVICES=4,5", f"BATON_RUNS={tmp_path}"} <= set(command)
    assert command[-4:] == ["bash", str(tmp_path / "x.sub"), "run.name=x", "k=v"]
    without = LaunchedRun(
        tmp_path / "x", Header(tmp_path / "x.sub", {"job-name": "x"}), [], seed_base=1, cluster="local"
    )
    assert "CUDA_VISIBLE_DEVICES=" in without.command(1), "a job that asks for no GPU sees none, as on SLURM"
