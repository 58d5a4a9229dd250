"""preflight finds what would go wrong, in a .sub file, on this machine and on its ranks."""

import shlex
from pathlib import Path

import pytest

from launchers.here import check, preflight, preflight_here
from launchers.here.environment import ROOT, parse_requirement
from launchers.slurm import node_check
from launchers.slurm.header import read_header
from launchers.slurm.node_check import batch_script, check_nodes
from tests.launchers.conftest import FakeCluster, Launcher, write_sub


def test_all_is_well(launcher: Launcher, sub: Path) -> None:
    answer = launcher("preflight", "--here", sub)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for what in ("header", "python", "packages", "runs", "gpu", "script", "notice", "config", "cluster", "nodes"):
        assert f"\n {what}" in answer.stdout
    assert "NO" not in answer.stdout


def shown(sub: Path, capsys: pytest.CaptureFixture[str], *, overrides: list[str] | None = None) -> tuple[int, str]:
    """(exit code, output as one line) of a preflight that asks neither torch nor nodes."""
    code = preflight.preflight(sub, overrides=overrides or [], only_here=True, wait_s=1)
    return code, " ".join(capsys.readouterr().out.split())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    monkeypatch.setattr(check, "devices", lambda: [])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "header, setup, says",
    [
        ("", "if true; then", "syntax error"),
        (
            "",
            "echo 'python -m recipes.x.train' >/dev/null; echo 'my.yaml:3: optim.lt: unknown' >&2; exit 85",
            "optim.lt",
        ),
        ("#SBATCH --ntasks=4", "", "has no srun: one would be started"),
        ("#SBATCH --signal=B:USR1@60", "", "B: gives the signal to the shell only; no rank would save"),
        ("#SBATCH --signal=HUP@60", "", "no rank listens to that; use USR1@120"),
        ("", "echo x\n#SBATCH --nodes=2", "sbatch ignores #SBATCH lines after the first command"),
        ("#SBATCH --tiem=3", "", "did you mean --time?"),
    ],
)
def test_what_is_wrong_in_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, header: str, setup: str, says: str
) -> None:
    sub = write_sub(tmp_path / "x.sub", header=f"#SBATCH --job-name=fake\n{header}", setup=setup)
    code, output = shown(sub, capsys)
    assert code == 85
    assert says in output
    assert output.count(" NO ") == 1


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_with_the_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, runs: Path, sub: Path
) -> None:
    monkeypatch.setattr(check, "requirements", lambda *extras: [parse_requirement("no-such-package>=1")])
    runs.write_text("a file where runs should go")
    code, output = shown(sub, capsys)
    assert code == 85
    assert "no-such-package NO missing >=1: " in output and "packages" not in output
    assert "runs NO" in output and "cannot be written" in output and "BATON_RUNS=/path/to/another/place" in output
    (failed,) = check_nodes(read_header(sub), {}, cluster="local", wait_s=1)
    assert failed == ("nodes", False, f"not checked, as {runs} cannot be written: File exists")
    runs.unlink()
    monkeypatch.setattr(check, "LEAST_FREE_GIB", 1e9)
    assert "GiB free: make room" in shown(sub, capsys)[1]


def test_a_path_of_the_data_that_is_not_there() -> None:
    config = """
data:
  train: manifests/demo/english_train.jsonl
  shards: [manifests/demo, "no/such/shards/*.tar", /no/such/cuts.jsonl]
  augment: {noise: no/such/noise.jsonl, rate: 16000, kind: a-b}
model: {checkpoint: openai/whisper}
"""
    named = preflight_here.paths(config)
    assert [(key, path) for key, path in named.items() if not preflight_here.is_there(path)] == [
        ("data.shards[2]", "/no/such/cuts.jsonl"),
        ("data.augment.noise", "no/such/noise.jsonl"),
    ]
    assert list(named) == ["data.train", "data.shards[0]", "data.shards[2]", "data.augment.noise"]


def test_the_paths_of_a_recipe_are_looked_for(tmp_path: Path) -> None:
    config = tmp_path / "resolved.yaml"
    config.write_text("data: {train: manifests/demo/english_train.jsonl}")
    sub = write_sub(tmp_path / "x.sub", setup=f"cat {config}; exit # python -m recipes.x.train")
    findings, named, precision = preflight_here.config(read_header(sub), [])
    assert precision == "fp32"
    assert findings[-1] == ("paths", True, "all 1 that the data section names are there")
    config.write_text("{data: {train: no/such.jsonl}, parallel: {precision: bf16}}")
    findings, named, precision = preflight_here.config(read_header(sub), [])
    assert findings[-1] == ("paths", False, "data.train: there is no no/such.jsonl")
    assert named == {"data.train": "no/such.jsonl"} and precision == "bf16"


@pytest.mark.usefixtures("runs")
def test_real_ranks_report_from_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two processes that meet, measure, and get a signal: the probe itself, without a cluster."""
    monkeypatch.setattr("launchers.chain.submission.num_cores", lambda: 2)
    monkeypatch.setattr(node_check, "START_S", 300.0)
    sub = write_sub(tmp_path / "x.sub", header="#SBATCH --job-name=x\n#SBATCH --ntasks=2")
    findings = {finding.what: finding for finding in check_nodes(read_header(sub), {}, cluster="local", wait_s=1)}
    assert [what for what, finding in findings.items() if not finding.is_well] == [], findings
    assert findings["signals"].words == "every rank got SIGUSR1"
    assert "over 2 ranks" in findings["collectives"].words
    assert "agree with float64" in findings["numerics"].words


def test_ranks_that_die_are_missed_and_their_last_words_shown(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(node_check, "start_commands", lambda header, folder: "echo 'ImportError: libcudart.so'; exit 1")
    sub = write_sub(tmp_path / "x.sub")
    *_, ranks, job = check_nodes(read_header(sub), {}, cluster="local", wait_s=1)
    assert (ranks.is_well, ranks.words) == (False, "of 1 ranks these did not start: 0")
    assert "ImportError: libcudart.so" in job.words
    assert list(runs.iterdir()) == [], "nothing is left behind"


def test_a_job_that_sbatch_refuses_or_slurm_does_not_start(cluster: FakeCluster, runs: Path, tmp_path: Path) -> None:
    sub = write_sub(tmp_path / "x.sub", header="#SBATCH --job-name=x\n#SBATCH --nodelist=n9")
    cluster.answers("scontrol", "echo 'JobId=101 JobState=PENDING Reason=ReqNodeNotAvail,_UnavailableNodes:n9 X=1'")
    (waits,) = check_nodes(read_header(sub), {}, cluster="slurm", wait_s=0.1)
    assert not waits.is_well
    assert "ReqNodeNotAvail, UnavailableNodes:n9" in waits.words
    assert cluster.calls("scancel") == ["--quiet 101"], "the check does not stay in the queue"
    cluster.answers("sbatch", "echo 'sbatch: error: Invalid node name specified' >&2; exit 1")
    (refused,) = check_nodes(read_header(sub), {}, cluster="slurm", wait_s=0.1)
    assert refused.words == "sbatch says: sbatch: error: Invalid node name specified"


def test_the_check_asks_for_the_resources_of_the_file(tmp_path: Path) -> None:
    text = batch_script(read_header(ROOT / "recipes/lmu_gigaspeech/job_2gpu.sub"), tmp_path / "a b")
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {
        "--gpus-per-node=2",
        "--ntasks-per-node=2",
        "--mem=64G",
        "--time=5",
        f"--chdir={shlex.quote(str(ROOT))}",
    } <= set(options)
    assert not any("requeue" in option or "signal" in option for option in options)
    assert f"source slurm/env.sh\nsrun --kill-on-bad-exit=1 python -m core.job.node_probe '{tmp_path}/a b' " in text


def test_the_check_starts_its_ranks_as_the_file_starts_its_own(tmp_path: Path) -> None:
    script = """\
export A='b c'
echo prepare $(date)
source slurm/env.sh
srun python -m recipes.x.prepare
B=1
srun --cpu-bind=none \\
  apptainer exec $B /x/python3.12 -m recipes.x.train "$@"
C=3"""
    sub = write_sub(tmp_path / "x.sub", setup=script)
    setup, start = node_check.start_commands(read_header(sub), tmp_path).split("srun ")
    assert setup.splitlines() == ["export A='b c'", "source slurm/env.sh", "B=1"]
    assert start.startswith(
        f"--kill-on-bad-exit=1 --cpu-bind=none    apptainer exec $B /x/python3.12 -m core.job.node_probe {tmp_path} "
    )
    quoted = write_sub(tmp_path / "y.sub", setup="srun bash -c 'python -m recipes.x.train'")
    assert node_check.start_commands(read_header(quoted), tmp_path).startswith(
        "source slurm/env.sh\nsrun --kill-on-bad-exit=1 python -m core.job.node_probe "
    )
