"""best_config.json, best_config.env and best_overrides.txt: the group that came first, for people and for programs.

`python -m recipes.csa_stage1.train --config FILE $(cat best_overrides.txt)` trains as it did.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.bench.attempt import OK
from core.bench.kpis import Figures
from core.bench.manifest import Row
from core.bench.plan import choices, planned_runs
from core.bench.settings import MODES, BenchConfig
from core.bench.telemetry.machine import Gpus
from core.config.load import to_dict
from core.rundir.whole_files import write_json, write_whole

FILES = ("best_config.json", "best_config.env", "best_overrides.txt")
# What CSRef calls it, and the column of the manifest that says what it was.
ENV: Mapping[str, str] = {
    "ZERO_STAGE": "zero_stage",
    "MICRO_BATCH": "micro_batch",
    "NUM_WORKERS": "num_workers",
    "PREFETCH_FACTOR": "prefetch_factor",
    "LOG_EVERY_STEPS": "log_every_steps",
    "VALIDATION_EVERY_STEPS": "validation_every_steps",
    "CHECKPOINT_EVERY_STEPS": "checkpoint_every_steps",
    "PRECISION_MODE": "precision_mode_effective",
    "ATTN_IMPL": "attn_impl_effective",
    "ENABLE_TORCH_COMPILE": "torch_compile_enabled",
    "ENABLE_TF32": "tf32_enabled",
}


def write_best(suite: Path, configs: Mapping[str, BenchConfig], rows: Sequence[Row], order: Sequence[Figures]) -> None:
    """All three files; none of them where no group has a good run, nor from an earlier summary."""
    if not order:
        for name in FILES:
            (suite / name).unlink(missing_ok=True)
        return
    first = order[0]
    mode = next(mode for mode in MODES if mode == first["mode"])
    config = configs[mode]
    row = next(r for r in rows if (r["mode"], r["group"], r["status"]) == (mode, first["group"], OK))
    variant = next(run.variant for run in planned_runs(config, mode) if run.group == first["group"])
    words = choices(config, variant, Gpus.of_row(row))
    figures: dict[str, Any] = {name: first[name] for name in ("tail_samples_per_sec_mean", "tail_iter_ms_mean")}
    content = {
        "mode": mode,
        "group": first["group"],
        "rank_by": config.rank_by,
        "recipe": config.recipe,
        "config": config.config,
        "overrides": words,
        "variant": to_dict(variant),
        "ran_with": {column: row[column] for column in ENV.values()},
        **figures,
        "stability_score": first["stability_score"],
    }
    write_json(suite / FILES[0], content)
    env = {"BEST_MODE": mode, "BEST_GROUP": first["group"], **{name: row[column] for name, column in ENV.items()}}
    write_whole(suite / FILES[1], "".join(f"{name}={shlex.quote(value)}\n" for name, value in env.items()))
    write_whole(suite / FILES[2], "".join(f"{word}\n" for word in words))
