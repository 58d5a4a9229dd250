"""The settings of a benchmark suite: bench.yaml. recipes/csa_stage1/docs/benchmark.md explains them all."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from core.config.schema import section
from core.timing.phases import TimingConfig

ROOT = Path(__file__).resolve().parents[2]

Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(gt=1)]
ZeroStage = Annotated[int, Field(ge=0, le=3)]
Mode = Literal["ab", "sweep"]
MODES: tuple[Mode, ...] = ("ab", "sweep")


@section
class Variant:
    """What a group of runs has of its own; null leaves what the recipe's YAML says. `overrides` are any other keys."""

    zero_stage: ZeroStage | None = None
    micro_batch: Count | None = None
    num_workers: Number | None = None
    prefetch_factor: Count | None = None
    log_every_steps: Count | None = None
    validation_every_steps: Count | None = None
    checkpoint_every_steps: Count | None = None
    wall_clock_breakdown: bool | None = None
    overrides: list[str] = field(default_factory=list)


@section
class SweepConfig:
    """One group for every combination of the values; an empty list is no axis. `rest` is what all groups share."""

    zero_stage: list[ZeroStage] = field(default_factory=list)
    micro_batch: list[Count] = field(default_factory=list)
    num_workers: list[Number] = field(default_factory=list)
    prefetch_factor: list[Count] = field(default_factory=list)
    rest: Variant = field(default_factory=Variant)


@section
class LaunchConfig:
    """Where runs take place: as tasks of a job array with the resources of `sub`, or here, one after another.

    `cluster: auto` takes SLURM where a controller answers. `sub: null` is the bench.sub beside the recipe's YAML.
    `ranks` and `master_port_base` (the first free port from there on) are for runs here; on SLURM the .sub file's
    header says how many ranks there are.
    """

    cluster: Literal["auto", "slurm", "local"] = "auto"
    sub: str | None = None
    ranks: Count = 1
    master_port_base: Annotated[int, Field(ge=1024, le=64000)] = 29650


@section
class NumericsConfig:
    """How runs compute; null leaves what the recipe's YAML says.

    `precision: auto` is bf16 on GPUs of compute capability 8 and more, fp16 on others, fp32 on a CPU. `attention` is of
    the parts of the model with `kind: pretrained`; auto is sdpa there, and nothing where there is no such part.
    """

    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] | None = "auto"
    torch_compile: bool | None = None


@section
class WatchConfig:
    """How a run is watched. A run ends as a failure when it takes longer than `run_timeout_s`, when its first record
    is not there after `max_wait_first_record_s`, or when no record came for `stall_timeout_s`.

    A line every `heartbeat_every_s`. A stall alert: no record for `stall_alert_ratio` x the usual time, and longer than
    a heartbeat. A spike alert: a median iteration of `spike_alert_ratio` x the usual one. A run that must end has
    `stop_grace_s` to leave before it is killed; `failure_dump_tail` lines of its log are shown if it failed.
    """

    run_timeout_s: Seconds | None = None
    max_wait_first_record_s: Seconds = 900.0
    stall_timeout_s: Seconds | None = 1800.0
    heartbeat_every_s: Seconds = 30.0
    stall_alert_ratio: Ratio = 2.0
    spike_alert_ratio: Ratio = 2.0
    stop_grace_s: Seconds = 30.0
    failure_dump_tail: Number = 40


@section
class TelemetryConfig:
    """gpu_telemetry.csv and host_telemetry.csv of each run, a row every so many seconds."""

    gpu: bool = True
    gpu_every_s: Seconds = 5.0
    host: bool = True
    host_every_s: Seconds = 5.0


@section
class LeakConfig:
    """When memory or step time counts as leaking, as telemetry/leaks.py tells.

    A run shorter than `min_minutes` after its warm-up is not judged.
    """

    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    min_minutes: Annotated[float, Field(ge=0)] = 3.0
    gpu_mib_per_min: Seconds = 20.0
    gpu_drift_mib: Seconds = 4096.0
    host_mib_per_min: Seconds = 100.0
    host_drift_mib: Seconds = 8192.0
    steady_mib_per_min: Seconds = 20.0
    steady_r2: Annotated[float, Field(gt=0, lt=1)] = 0.9
    iter_drift: Annotated[float, Field(gt=0)] = 0.2


@section
class BenchConfig:
    """A suite: directory `name` among the runs.

    `recipe` is the module of a recipe's training, `config` its YAML, `overrides` are for all runs. `resume: false` does
    finished runs again. Rankings: `iter` (shortest iteration), `throughput` (samples a second, or targets a second
    where batches hold as many samples as fit), `stability`, `balanced` (throughput and stability alike).
    """

    name: str
    recipe: str
    config: str
    max_steps: Count
    repeats: Count = 3
    overrides: list[str] = field(default_factory=list)
    baseline_group: str = "old_like"
    rank_by: Literal["iter", "throughput", "stability", "balanced"] = "balanced"
    tail_timing_points: Count = 20
    resume: bool = True
    stop_on_error: bool = False
    manifest_write_retries: Number = 3
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    numerics: NumericsConfig = field(default_factory=NumericsConfig)
    timing: TimingConfig = field(default_factory=TimingConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    leaks: LeakConfig = field(default_factory=LeakConfig)
    ab: dict[str, Variant] = field(default_factory=dict)
    sweep: SweepConfig = field(default_factory=SweepConfig)
