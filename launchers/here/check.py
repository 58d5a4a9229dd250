"""`./run.sh check`: can Baton run here? One line a fact (ok, warn or fail), and what to do about it.

Exit code 1 when something that every run needs is missing. It works in a broken environment, so only the standard
library is imported: what torch, soundfile, gloo and NCCL can do, they show in processes of their own.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from core.rundir.environment import runs_root
from launchers.here.environment import ROOT, SUPPORTED_PYTHONS, Requirement, requirements
from launchers.here.machine import num_cores, slurm_answers, visible_gpus

WIDTH = 80
TIMEOUT_S = 120.0  # a login node may read torch from a slow disk
LEAST_FREE_GIB = 5.0
LEAST_MEMORY_GIB = 4.0
CLIP = Path("manifests/demo/english/added.ogg")

_DECODE = """
import sys
from pathlib import Path
from core.speech.audio import read_audio
print(len(read_audio(Path(sys.argv[1]), sample_rate_hz=16_000)) / 16_000)
"""
_DEVICES = """
import json, torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
facts = {"torch": torch.__version__, "cuda": torch.version.cuda}
print(json.dumps({**facts, "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus]}), flush=True)
if gpus:
    ones = [torch.ones(1, device=i) for i in range(len(gpus))]
    torch.cuda.nccl.all_reduce(ones)
    assert all(int(one) == len(gpus) for one in ones), ones
    print(".".join(map(str, torch.cuda.nccl.version())))
"""
_NUMERICS = """
import json, torch
from core.numerics import all_kernels, faults
print(json.dumps(faults(all_kernels(), dtypes=[torch.float32, torch.bfloat16], device="cpu")))
"""
_RANK = """
import os
from core.distributed import joined
with joined(device="cpu") as ranks:
    print(ranks.total([ranks.rank + 1]), flush=True)
os._exit(0)  # gloo threads may abort an ordinary interpreter exit
"""


class CheckResult(NamedTuple):
    """One line of `./run.sh check`, and what to do where it is not ok."""

    state: Literal["ok", "warn", "fail"]
    what: str
    words: str
    advice: str = ""

    def lines(self) -> list[str]:
        """Return its lines, at most 80 columns wide."""
        head = f"{self.state:5} {self.what:19} "
        indent = " " * len(head)
        lines = textwrap.wrap(head + self.words, WIDTH, subsequent_indent=indent)
        return lines + textwrap.wrap(self.advice, WIDTH, initial_indent=indent[:-3] + "-> ", subsequent_indent=indent)


def main() -> int:
    checks = (python, packages, memory, devices, numerics, decoding, ranks, disk, slurm)
    found: list[CheckResult] = []
    with ThreadPoolExecutor(len(checks)) as pool:  # most of them wait for a process
        for findings in pool.map(lambda check: check(), checks):
            found += findings
            for finding in findings:
                print("\n".join(finding.lines()), flush=True)
    num_failures = sum(finding.state == "fail" for finding in found)
    num_warnings = sum(finding.state == "warn" for finding in found)
    if num_failures:
        print(f"\nBaton cannot run here: {num_failures} fail, {num_warnings} warn")
    else:
        print(f"\nBaton can run here{f'; {num_warnings} warn' if num_warnings else ''}")
    return int(num_failures > 0)


def python() -> list[CheckResult]:
    words = f"{sys.version.split()[0]} in {sys.prefix}"
    if sys.version_info[:2] in SUPPORTED_PYTHONS:
        return [CheckResult("ok", "python", words)]
    return [CheckResult("fail", "python", words, "use Python 3.11 or 3.12; BATON_PYTHON=/path/to/python3.12 names one")]


def packages() -> list[CheckResult]:
    """Check each package that a run needs, its version and range; of the test tools only what is wrong is told."""
    needed, found = requirements(), []
    for requirement in needed:
        version = _version(requirement)
        is_well = version is not None and requirement.accepts(version)
        words = f"{version or 'missing':14} {requirement.range}"
        advice = "" if is_well else f"{_pip()} install -c constraints.txt {requirement.name}"
        found.append(CheckResult("ok" if is_well else "fail", requirement.name, words, advice))
    tools = [requirement for requirement in requirements("dev") if requirement not in needed]
    lacking = [one.name for one in tools if (version := _version(one)) is None or not one.accepts(version)]
    if not lacking:
        return [*found, CheckResult("ok", "test tools", f"all {len(tools)}, in their ranges")]
    words = f"missing or out of range: {', '.join(lacking)}"
    advice = "only ./test.sh needs them; it makes itself an environment with them"
    return [*found, CheckResult("warn", "test tools", words, advice)]


def memory() -> list[CheckResult]:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    words = f"{num_cores()} cores, {gib:.0f} GiB memory"
    if gib >= LEAST_MEMORY_GIB:
        return [CheckResult("ok", "cpu", words)]
    advice = f"the demo wants {LEAST_MEMORY_GIB:.0f} GiB: end other programs while it runs"
    return [CheckResult("warn", "cpu", words, advice)]


def devices() -> list[CheckResult]:
    """Check the GPUs as torch sees them, and a sum over all of them by NCCL."""
    answer = _run(_DEVICES)
    first, *rest = answer.stdout.splitlines() or [""]
    if not first:
        return [CheckResult("fail", "gpu", _last_line(answer), _reinstall("torch"))]
    facts = json.loads(first)
    build = f"torch {facts['torch']}, {'CUDA ' + facts['cuda'] if facts['cuda'] else 'a build without CUDA'}"
    num_seen, num_there = len(facts["gpus"]), len(visible_gpus())
    if not num_there and not num_seen:
        advice = "enough for the demo and the tests; train the rest on a node with NVIDIA GPUs"
        return [CheckResult("warn", "gpu", f"none here; {build}", advice)]
    if not num_seen:
        advice = "see nvidia-smi: the driver may be older than this CUDA wants"
        if not facts["cuda"]:
            advice = "BATON_TORCH=cuda makes .venv with CUDA: rm -rf .venv, and type this again"
        return [CheckResult("fail", "gpu", f"{num_there} here, torch sees none; {build}", advice)]
    gpu = CheckResult("ok", "gpu", f"{num_seen} x {facts['gpus'][0]}; {build}")
    if answer.returncode == 0:
        return [gpu, CheckResult("ok", "nccl", f"{rest[-1]} adds up over {num_seen} GPU{'s' * (num_seen > 1)}")]
    advice = "NCCL_DEBUG=INFO makes a run say more; settings of the site go into slurm/cluster.sh"
    return [gpu, CheckResult("fail", "nccl", _last_line(answer), advice)]


def numerics() -> list[CheckResult]:
    """Return what this CPU computes wrongly; in bf16 a warning: fp32 is right, and a run in bf16 refuses."""
    answer = _run(_NUMERICS)
    if answer.returncode != 0:
        return [CheckResult("fail", "numerics", _last_line(answer), _reinstall("torch"))]
    found = [
        CheckResult("fail" if precision == "fp32" else "warn", "numerics", words, advice)
        for words, precision, advice in json.loads(answer.stdout)
    ]
    return found or [CheckResult("ok", "numerics", "the CPU agrees with float64, in fp32 and in bf16")]


def decoding() -> list[CheckResult]:
    if not (ROOT / CLIP).exists():
        return [CheckResult("fail", "audio", f"{CLIP} is missing", "git checkout -- manifests/demo")]
    answer = _run(_DECODE, str(CLIP))
    if answer.returncode != 0:
        return [CheckResult("fail", "audio", _last_line(answer), _reinstall("soundfile"))]
    return [CheckResult("ok", "audio", f"decodes {CLIP} ({float(answer.stdout):.1f} s)")]


def ranks() -> list[CheckResult]:
    """Check that two processes find each other and add up, as the ranks of a run do."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    facts = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
             "BATON_RENDEZVOUS_TIMEOUT_S": "30", "TORCHELASTIC_USE_AGENT_STORE": "False"}  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda rank: _run(_RANK, env={**facts, "RANK": rank, "LOCAL_RANK": rank}), "01"))
    if all(answer.stdout.strip() == "[3.0]" for answer in answers):
        return [CheckResult("ok", "gloo", "two ranks on this machine find each other and add up")]
    worst = next(answer for answer in answers if answer.stdout.strip() != "[3.0]")
    return [CheckResult("fail", "gloo", _last_line(worst), "GLOO_SOCKET_IFNAME=lo names the interface of this machine")]


def disk() -> list[CheckResult]:
    """Check that a file can be made where runs go; the folder itself need not be there yet."""
    root = runs_root()
    nearest = next(path for path in (root, *root.parents) if path.exists())
    advice = "BATON_RUNS=/path/to/another/place"
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return [CheckResult("fail", "runs", f"{nearest}: cannot be written: {error.strerror}", advice)]
    gib = shutil.disk_usage(nearest).free / 2**30
    words = f"{root}, {gib:.0f} GiB free"
    if gib < LEAST_FREE_GIB:
        return [CheckResult("warn", "runs", words, f"make room, or {advice}: checkpoints of a large model need it")]
    return [CheckResult("ok", "runs", words)]


def slurm() -> list[CheckResult]:
    if slurm_answers():
        return [CheckResult("ok", "slurm", "answers: ./launch.sh queues jobs")]
    if shutil.which("sbatch"):
        advice = "scontrol ping says why; until it answers, links run on this machine"
        return [CheckResult("warn", "slurm", "sbatch is here, but no controller answers", advice)]
    return [CheckResult("ok", "slurm", "not here: the links of ./launch.sh run on this machine")]


def _version(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None


def _reinstall(name: str) -> str:
    """Return what to type for a package that is there and does not work."""
    return f"{_pip()} install --force-reinstall --no-deps -c constraints.txt {name}"


def _pip() -> str:
    return f"{'.venv/bin/python' if Path(sys.prefix) == ROOT / '.venv' else 'python'} -m pip"


def _run(program: str, *arguments: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a program in this environment, in the directory of the repository."""
    command = [sys.executable, "-c", program, *arguments]
    everything = {**os.environ, **(env or {})}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=ROOT, env=everything)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {TIMEOUT_S:.0f} s")


def _last_line(answer: "subprocess.CompletedProcess[str]") -> str:
    lines = answer.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {answer.returncode}"


if __name__ == "__main__":
    sys.exit(main())
