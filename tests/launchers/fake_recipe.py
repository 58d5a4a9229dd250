"""Stands in for a recipe's train.py: the same files and exit codes, without torch.

python fake_recipe.py run.name=NAME [run.seed=S] [fake.steps_per_link=5] [fake.total=10] [fake.step_s=0]
    [fake.exit=CODE] [fake.at=STEP] [fake.print=TEXT] [fake.is_silent=1]
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from core.rundir.files import CHECKPOINTS, DONE, REPORT, SCORES
from core.rundir.ledger import record_link
from core.rundir.whole_files import write_json


def main() -> int:
    settings = dict(word.split("=", 1) for word in sys.argv[1:])
    run = Path(os.environ["BATON_RUNS"]) / settings["run.name"]
    link, seed = int(os.environ["BATON_LINK"]), int(os.environ["BATON_LINK_SEED"])
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: stops.append(number))

    if settings.get("fake.is_silent"):  # dies before it says anything
        return leave(int(settings["fake.exit"]))
    step = max((int(path.name[5:]) for path in run.glob(f"{CHECKPOINTS}/step_*")), default=0)
    record_link(run, event="started", link=link, host=socket.gethostname(), pid=os.getpid(), step=step, seed=seed)
    print(settings.get("fake.print", "at work"), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    last = step + int(settings.get("fake.steps_per_link", 5))
    total = int(settings.get("fake.total", 10))
    while step < min(last, total) and not stops:
        time.sleep(float(settings.get("fake.step_s", 0)))
        step += 1
        print(f"step {step}", flush=True)
        if step == int(settings.get("fake.at", -1)):
            return end(run, link, int(settings["fake.exit"]), "as it was told", step)
    checkpoint = run / CHECKPOINTS / f"step_{step:08d}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "COMPLETE").touch()
    if step < total:
        return end(run, link, 75, f"signal {stops[0]}" if stops else "", step)
    write_json(
        run / SCORES,
        {"test/wer_greedy": 0.31, "test/cer_greedy": 0.1, "test/words": 512, "test/loss": 1.25, "step": step},
    )
    (run / REPORT).touch()
    (run / DONE).touch()
    return end(run, link, 0, "", step)


def end(run: Path, link: int, code: int, reason: str, step: int) -> int:
    record_link(run, event="ended", link=link, exit_code=code, reason=reason, step=step, train_s=0.1)
    return leave(code)


def leave(code: int) -> int:
    """The exit code; a negative one is the signal to die of."""
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
