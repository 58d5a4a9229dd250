"""Run every benchmark of this folder in a process of its own and write what they print to results.md.

./run.sh bench
"""

import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.md"


def main() -> int:
    """Exit 1 if a benchmark failed; the others are written all the same."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    sections = [
        "# Benchmarks\n\nWritten by `./run.sh bench`. Each ratio comes from interleaved runs in one process; "
        "absolute times say little on a shared machine.\n\n"
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {cores} cores, "
        f"Python {platform.python_version()}, torch {version('torch')}\n"
    ]
    num_failed = 0
    for script in sorted(FOLDER.glob("*.py")):
        if script.stem in ("__init__", "results"):
            continue
        print(f"== {script.stem}", flush=True)
        run = subprocess.run([sys.executable, "-m", f"tests.bench.{script.stem}"], stdout=subprocess.PIPE, text=True)
        print(run.stdout)
        if run.returncode != 0:
            num_failed += 1
            sections.append(f"## {script.stem} failed with exit code {run.returncode}\n")
        sections.append(re.sub(r"^#", "##", run.stdout.strip(), flags=re.MULTILINE) + "\n")
    temporary = RESULTS.with_suffix(".new")
    temporary.write_text("\n".join(sections), encoding="utf-8")
    temporary.replace(RESULTS)
    print(f"written to {RESULTS}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
