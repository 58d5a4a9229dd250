"""Stands in for a recipe's training in the tests of the benchmark's supervision: the same files, without torch.

python -m tests.core.bench.stub --config FILE run.name=NAME train.max_steps=12 [stub.step_s=0.01] [stub.hang_at=STEP]
    [stub.crash_at=STEP] [stub.signal_at=STEP] [stub.ignores_stop=1] [stub.child=1] [stub.slow_from=STEP]

What a step takes is written down, not slept. Markers in the folder of the configuration: `wait` makes every step wait;
with `crash` it crashes at step `stub.crash_marker`.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from core.rundir.files import CONFIG, DONE, LEDGER, METRICS
from core.rundir.whole_files import append_record, now

PARTS = ("data_wait", "move", "forward", "backward", "update", "step")


def main() -> int:
    if int(os.environ.get("SLURM_PROCID", 0)):  # one rank speaks for all
        return 0
    config = Path(sys.argv[2])
    settings = dict(word.split("=", 1) for word in sys.argv[3:])
    run = Path(os.environ["BATON_RUNS"]) / settings["run.name"]
    run.mkdir(parents=True, exist_ok=True)
    total, places = (
        int(settings["train.max_steps"]),
        {key: int(v) for key, v in settings.items() if key.endswith("_at")},
    )
    if settings.get("stub.ignores_stop"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if settings.get("stub.child"):
        subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"])
    sections = ["plan:", f"  max_cuts: {settings.get('plan.max_cuts', 4)}", "  micro_batches_per_step: 2"]
    (run / CONFIG).write_text("\n".join([*sections, ""]))
    append_record(run / LEDGER, {"event": "started", "link": 1, "pid": os.getpid(), "host": "elsewhere"})
    place = {"time": now(), "token": 1, "link": 1}
    append_record(run / METRICS, {"phase": "start", "step": 0, **place})
    for step in range(1, total + 1):
        while (config.parent / "wait").exists() or step == places.get("stub.hang_at"):
            time.sleep(0.02)
        marker = (config.parent / "crash").exists() and step == int(settings.get("stub.crash_marker", 0))
        if marker or step == places.get("stub.crash_at"):
            print("something broke", flush=True)
            return 1
        if step == places.get("stub.signal_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        step_s = float(settings.get("stub.step_s", 0.01))
        step_s *= 10 if step >= int(settings.get("stub.slow_from", total + 1)) else 1
        parts = {f"{part}_s_{quantile}": step_s for part in PARTS for quantile in ("p50", "p90")}
        told = {"loss": 1 / step, "eta_s": (total - step) * step_s, "eta_step_s": step_s, "eta_samples": step}
        append_record(run / METRICS, {"phase": "train", "step": step, **place, **told, **parts})
    (run / DONE).touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
