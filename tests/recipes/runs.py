"""Tiny runs of a recipe, lmu_gigaspeech if no other is named: in forked processes, or as the real command (`start`)."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lhotse import MonoCut
from lhotse.serialization import deserialize_item
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import core.job.link
import recipes.lmu_gigaspeech.train as lmu
from core.data.index import ManifestIndex, write_manifest
from core.rundir.checkpoints import list_complete
from core.rundir.files import CHECKPOINTS, METRICS, SAMPLES
from core.rundir.metrics_log import read_metrics
from core.rundir.whole_files import read_records
from tests.ranks import free_port

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "manifests" / "demo"

CONFIG = """\
run:
  name: tiny
  device: cpu
  record_samples: true
data:
  train: {folder}/train.jsonl
  valid: {folder}/dev.jsonl
  test: {folder}/test.jsonl
  augment:
    speed_factors: [0.9, 1.0, 1.1]
plan:
  micro_batches_per_step: 2
  max_duration_s: 20.0
  max_cuts: 2
  num_buckets: 2
  over_budget: skip
model:
  encoder:
    kind: lmu
    dim: 16
    num_blocks: 1
    subsampling_channels: 8
    memory_channels: 4
    order: 4
    ffn_dim: 32
    dropout: 0.2
train:
  max_steps: 6
  log_every_steps: 1
optim:
  lr: 1e-2
  max_norm: 1.0
loader:
  num_workers: 0
checkpoint:
  every_steps: 2
loggers:
  tensorboard: false
decode:
  beam:
    beam_size: 2
"""

Hook = Callable[[int], None]  # called before each micro-batch of a link with its number


@dataclass(frozen=True)
class Job:
    """The processes of one link, and where they write what they say."""

    processes: list[BaseProcess]
    log: Path

    def wait(self, timeout_s: float = 60) -> list[int | None]:
        """The exit codes in rank order; minus the signal for one that was killed."""
        for process in self.processes:
            process.join(timeout_s)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        assert None not in codes, f"hung: {codes}\n{self.text}"
        return codes

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")


def demo_cuts(split: str, num: int) -> list[MonoCut]:
    """The shortest clips of the demo corpus that last a second."""
    index = ManifestIndex.open(DEMO / f"english_{split}.jsonl")
    rows = [row for row in index.durations_s.argsort(kind="stable") if index.durations_s[row] >= 1.0]
    return [index.read(int(row)) for row in rows[:num]]


def of_file(cut: MonoCut, path: Path) -> MonoCut:
    """The cut with another id and another file behind it."""
    record = cut.to_dict()
    record["id"] = record["recording"]["id"] = path.stem
    record["recording"]["sources"][0]["source"] = str(path)
    for supervision in record["supervisions"]:
        supervision["id"] = supervision["recording_id"] = path.stem
    return deserialize_item(record)


def write_config(folder: Path, cuts: list[MonoCut] | None = None) -> Path:
    """A configuration over three tiny manifests in `folder`; `cuts` to train on others than the usual."""
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(demo_cuts("train", 20) if cuts is None else cuts, folder / "train.jsonl")
    write_manifest(demo_cuts("dev", 2), folder / "dev.jsonl")
    write_manifest(demo_cuts("test", 2), folder / "test.jsonl")
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return path


def start(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`python -m recipes.lmu_gigaspeech.train` on `tmp_path/tiny.yaml`, runs under `tmp_path/runs`."""
    config = tmp_path / "tiny.yaml"
    if not config.exists():
        write_config(tmp_path)
    command = [sys.executable, "-m", "recipes.lmu_gigaspeech.train", "--config", str(config), *overrides]
    env = os.environ | {"BATON_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)


def begin(
    config: Path,
    runs: Path,
    *overrides: str,
    num_ranks: int = 1,
    env: Mapping[str, str] | None = None,
    hook: Hook | None = None,
    report: bool = False,
    recipe: Any = lmu,
) -> Job:
    """Start a link of the run in forked processes; without the report, whose pictures take longer than the run.

    `recipe`: a module with `main`, and `loss_fn` or `contrast` if there is a hook.
    """
    runs.mkdir(parents=True, exist_ok=True)
    descriptor, log = tempfile.mkstemp(dir=runs, suffix=".log")
    os.close(descriptor)
    argv = ["--config", str(config), *overrides]
    facts = {"BATON_RUNS": str(runs), **(env or {})}
    if num_ranks > 1:
        facts |= {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    context = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = []
    for rank in range(num_ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else {}
        processes.append(context.Process(target=_link, args=(recipe, argv, facts | place, Path(log), hook, report)))
        processes[-1].start()
    return Job(processes, Path(log))


def link(
    config: Path, runs: Path, *overrides: str, timeout_s: float = 60, **options: Any
) -> tuple[list[int | None], str]:
    """One link from its start to its end: (exit codes, what it said)."""
    job = begin(config, runs, *overrides, **options)
    return job.wait(timeout_s), job.text


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / METRICS) if record["phase"] == "train"]


def samples(run: Path) -> list[list[list[str]]]:
    """The sample ids of each step; of a step that was trained twice, the later."""
    return list({record["step"]: record["micro_batches"] for record in read_records(run / SAMPLES)}.values())


def state(run: Path) -> dict[str, Any]:
    """All that the newest checkpoint's weights directory holds (parameters, optimizer), by flat name."""
    weights = list_complete(run / CHECKPOINTS)[-1].directory / "weights"
    with tempfile.TemporaryDirectory() as folder:
        dcp_to_torch_save(weights, Path(folder, "state.pt"))
        return dict(_flat(torch.load(Path(folder, "state.pt"), weights_only=False)))


def assert_same_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Bit for bit."""
    assert one and one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


def _flat(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, list | tuple):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [pair for key, value in tree.items() for pair in _flat(value, f"{path}/{key}")]


def _link(recipe: Any, argv: list[str], env: Mapping[str, str], log: Path, hook: Hook | None, report: bool) -> None:
    for name in (
        "RANK",
        "WORLD_SIZE",
        "BATON_LINK",
        "BATON_LINK_SEED",
        "SLURM_JOB_END_TIME",
        "BATON_DEADLINE",
        "TORCHELASTIC_USE_AGENT_STORE",
    ):
        os.environ.pop(name, None)
    os.environ.update(env)
    output = log.open("a", buffering=1, encoding="utf-8")
    sys.stdout = sys.stderr = output
    torch.set_num_threads(1)
    if not report:
        core.job.link.write_report = lambda directory: None  # type: ignore[assignment,misc,return-value]
    if hook is not None:
        name = "loss_fn" if hasattr(recipe, "loss_fn") else "contrast"
        setattr(recipe, name, _hooked(getattr(recipe, name), hook))
    code = 99
    try:
        code = recipe.main(argv)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    output.flush()
    os._exit(code)  # gloo threads may abort an ordinary interpreter exit


def _hooked(loss_fn: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    place = 0

    def hooked(model: Any, batch: Any, **settings: Any) -> Any:
        nonlocal place
        hook(place)
        place += 1
        return loss_fn(model, batch, **settings)

    return hooked
