"""A run that began under an earlier version goes on under this one: the same data, the same losses.

`stored_runs/lmu_gigaspeech.tar.xz` was made at commit 99e83ee, before core had rooms, with these settings:

    run.name=stored run.record_samples=true data.train=manifests/demo/english_overfit.jsonl
    data.valid=manifests/demo/english_dev.jsonl data.test=manifests/demo/english_overfit.jsonl data.features.num_mels=16
    model.encoder.input_dim=16 model.encoder.dim=8 model.encoder.subsampling_channels=2 model.encoder.memory_channels=2
    model.encoder.order=2 model.encoder.ffn_dim=8 model.encoder.conv_kernel=3 plan.max_cuts=2 train.max_steps=20
    train.log_every_steps=1 checkpoint.every_steps=2 checkpoint.keep_last=1 loggers.tensorboard=false run.link_steps=5

of recipes/lmu_gigaspeech/tiny.yaml; `lmu_gigaspeech.jsonl` is what the same commit did in the next five steps.
"""

import tarfile
from pathlib import Path

import pytest

from core.rundir.exit_codes import ExitCode
from core.rundir.files import LEDGER, METRICS
from core.rundir.metrics_log import read_metrics
from core.rundir.whole_files import read_records
from tests.recipes import runs

STORED = Path(__file__).parent / "stored_runs"


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.ROOT)  # its manifests are named from there
    with tarfile.open(STORED / "lmu_gigaspeech.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "stored"
    codes, said = runs.link(run / "config.yaml", tmp_path)
    assert codes == [ExitCode.CONTINUE], said
    starts = [record["step"] for record in read_records(run / LEDGER) if record["event"] == "started"]
    assert starts == [0, 5]
    expected = list(read_records(STORED / "lmu_gigaspeech.jsonl"))
    found = [record for record in read_metrics(run / METRICS) if record["phase"] == "train" and record["step"] > 5]
    assert [record["step"] for record in found] == [record["step"] for record in expected] == [6, 7, 8, 9, 10]
    assert runs.samples(run)[5:] == [record["micro_batches"] for record in expected]
    for name in ("loss", "grad_norm", "epoch"):  # equal to the bit on the processor that made them
        assert [one[name] for one in found] == pytest.approx([one[name] for one in expected], rel=1e-5), name
