"""Make or repair `.venv` in the repository: the environment of a fresh machine. Only the standard library.

launchers/bootstrap.sh runs this with a bare Python when no ready environment is found:

    python -m launchers.here.bootstrap

A start that was killed is taken up where it stopped: pip keeps what it downloaded, half-installed packages are
found and installed again. Two starts at once are safe: the second waits. The stamp, a copy of constraints.txt,
is written last; bootstrap.sh compares it. Nothing is installed outside a `.venv` that this program made.
"""

import contextlib
import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launchers.here.environment import ROOT
from launchers.here.installation import LOG, PYTHON, VENV, BootstrapError, progress, run_pip, say
from launchers.here.machine import has_nvidia_gpu, slurm_offers_gpus

MADE_BY_US = VENV / "baton-made"  # first file written: tells our .venv from a person's own
CPU_TORCH = VENV / "baton-cpu-torch"
STAMP = VENV / "baton-stamp"  # last file written
LOCK = ROOT / ".venv.lock"
CONSTRAINTS = ROOT / "constraints.txt"


def is_ready() -> bool:
    """Tell whether `.venv` is complete, by the same test as in bootstrap.sh."""
    return os.access(PYTHON, os.X_OK) and STAMP.is_file() and STAMP.read_bytes() == CONSTRAINTS.read_bytes()


def prepare() -> None:
    """Leave a complete `.venv` behind. BootstrapError with what to do otherwise."""
    with locked() as lock:
        if is_ready():
            return
        if is_foreign():
            raise BootstrapError(
                f"{VENV} was not made by Baton and cannot run it as it is; nothing is installed into it. "
                "Move it away (mv .venv .venv.mine), or install constraints.txt there yourself"
            )
        started = time.monotonic()
        on_cpu = wants_cpu_build()
        version = ".".join(map(str, sys.version_info[:3]))
        build = "CPU" if on_cpu else "default (CUDA)"
        again = "going on with" if MADE_BY_US.exists() else "making"
        say(f"{again} {VENV}: Python {version}, {build} build of torch, about {2 if on_cpu else 8} GB")
        say("Ctrl-C is safe: the same command goes on where it stopped")
        make_venv()
        if is_other_build(on_cpu=on_cpu):
            say("the torch in .venv is of the other build: starting over")
            shutil.rmtree(VENV)
            make_venv()
        repair()
        install_packages(lock=lock, on_cpu=on_cpu)
        temporary = STAMP.with_suffix(".new")
        temporary.write_bytes(CONSTRAINTS.read_bytes())
        temporary.replace(STAMP)
        say(f"the environment is ready ({time.monotonic() - started:.0f} s)")


@contextlib.contextmanager
def locked() -> Iterator[int]:
    """Let one start at a time go on. The lock is handed to pip, so it holds until an orphaned pip has ended, too."""
    try:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BootstrapError(
            f"cannot write in {ROOT} ({error.strerror}); make an environment elsewhere and activate it: "
            "conda env create -f environment.yml && conda activate baton"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            say(f"another start (process {owner}) is making the environment; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def is_foreign() -> bool:
    """Tell whether there is a `.venv` that this program did not make."""
    return VENV.exists() and not MADE_BY_US.exists() and any(VENV.iterdir())


def wants_cpu_build() -> bool:
    """Tell whether to take the CPU build of torch: as BATON_TORCH=cpu or cuda says, else where no GPU is to be seen."""
    build = os.environ.get("BATON_TORCH", "")
    if build not in ("", "cpu", "cuda"):
        raise BootstrapError(f"BATON_TORCH={build}: expected cpu or cuda")
    if build:
        return build == "cpu"
    return not (has_nvidia_gpu() or slurm_offers_gpus())


def make_venv() -> None:
    """Make a virtual environment with pip; a broken one of ours is made anew."""
    pips = list(VENV.glob("lib/*/site-packages/pip-*.dist-info"))
    if MADE_BY_US.exists() and _works(PYTHON) and pips and all(map(_is_complete, pips)):
        return
    if VENV.exists():
        shutil.rmtree(VENV)  # ours, or empty: see is_foreign
    VENV.mkdir()
    MADE_BY_US.touch()
    with progress("[1/4] virtual environment"):
        made = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True)
    if made.returncode != 0 or not _works(PYTHON):
        raise BootstrapError(f"python -m venv failed:\n{made.stdout}{made.stderr}")


def _works(python: Path) -> bool:
    """Tell whether this venv has a supported Python of the version that made it, and pip."""
    try:
        answer = subprocess.run(
            [python, "-c", "import sys, pip; print(sys.version_info[:2])"], capture_output=True, text=True
        )
    except OSError:
        return False
    return answer.stdout.strip() in ("(3, 11)", "(3, 12)")


def is_other_build(*, on_cpu: bool) -> bool:
    """Tell whether an earlier start installed the build of torch that is not wanted now; its libraries must go, too."""
    found = [info.name for info in VENV.glob("lib/*/site-packages/torch-*.dist-info")]
    if not on_cpu:
        return any("+cpu" in name for name in found)
    return any("+cpu" not in name for name in found) and offers_cpu_build()


def repair() -> None:
    """Forget packages whose files a killed pip left incomplete, so that pip installs them again."""
    for site in VENV.glob("lib/python3.*/site-packages"):
        for info in [*site.glob("*.dist-info"), *site.glob("~*")]:
            if info.name.startswith("~") or not _is_complete(info):
                shutil.rmtree(info, ignore_errors=True)


def _is_complete(info: Path) -> bool:
    """Tell whether every file that a package's RECORD lists is there with the size it should have."""
    record = info / "RECORD"
    if not record.is_file():
        return False
    with record.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            if len(row) != 3:
                return False  # RECORD itself was cut short
            path = info.parent / row[0]
            if path.suffix == ".pyc" or (path.suffix == ".so" and "torchaudio" in path.parts):
                continue  # not of the package, or deleted on purpose (see install_packages)
            if not path.exists() or (row[2] and path.stat().st_size != int(row[2])):
                return False
    return True


def install_packages(*, lock: int, on_cpu: bool) -> None:
    """Install the exact set of constraints.txt in three steps, of which each has its reason.

    torch goes first: any package that needs torch would otherwise pull the newest CUDA build. torchaudio goes last
    and without dependencies; beside a CPU torch its libraries fail to load (and then break transformers), while
    everything used here (MFCC, mel, resampling, the HuBERT reference) works without them.
    """
    torch, torchaudio, rest = pins()
    index = os.environ.get("BATON_TORCH_INDEX")
    source = ["--extra-index-url", index] if index else []  # `2.13.0+cpu` there wins over plain 2.13.0
    if on_cpu and not offers_cpu_build():
        say(f"pip offers only the default build of {torch} here: about 3 GB of CUDA libraries that this machine")
        say("cannot use. For the CPU build (0.2 GB) stop now and set BATON_TORCH_INDEX to an index that has it, e.g.")
        say("  export BATON_TORCH_INDEX=https://download.pytorch.org/whl/cpu")
    run_pip(f"[2/4] {torch}", ["install", torch, "-c", str(CONSTRAINTS), *source], lock=lock)
    run_pip(f"[3/4] {len(rest)} packages", ["install", *rest, torch, *source], lock=lock)
    run_pip(f"[4/4] {torchaudio}", ["install", "--no-deps", torchaudio], lock=lock)
    if any(VENV.glob("lib/*/site-packages/torch-*+cpu.dist-info")):
        for library in VENV.glob("lib/python3.*/site-packages/torchaudio/lib/*.so"):
            library.unlink()
        CPU_TORCH.touch()
    else:
        CPU_TORCH.unlink(missing_ok=True)


def pins() -> tuple[str, str, list[str]]:
    """Read constraints.txt as (torch, torchaudio, all others)."""
    lines = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    torch = next(line for line in lines if line.startswith("torch=="))
    torchaudio = next(line for line in lines if line.startswith("torchaudio=="))
    return torch, torchaudio, [line for line in lines if line not in (torch, torchaudio)]


def offers_cpu_build() -> bool:
    """Tell whether pip would take a `+cpu` build. Only Linux on x86-64 has a CUDA build as its default."""
    if os.environ.get("BATON_TORCH_INDEX") or sys.platform != "linux" or os.uname().machine != "x86_64":
        return True
    options = ["--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]
    command = [str(PYTHON), "-m", "pip", "install", *options, pins()[0]]
    answer = subprocess.run(command, capture_output=True, text=True)
    try:
        return any(chosen["metadata"]["version"].endswith("+cpu") for chosen in json.loads(answer.stdout)["install"])
    except (json.JSONDecodeError, KeyError):
        return True  # no answer: the installation itself will say what is wrong


def main() -> int:
    try:
        prepare()
    except BootstrapError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it stopped")
        return 130
    except OSError as error:
        say(f"error: {error}; free some space or look at {LOG}, then start again: it goes on where it stopped")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
