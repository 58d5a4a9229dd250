"""What a benchmark has to know of the machine that it runs on: the GPUs by nvidia-smi, and a free port."""

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SMI_TIMEOUT_S = 20.0
PORTS_TRIED = 500
# A column of the manifest, and what nvidia-smi calls it.
QUERY: Mapping[str, str] = {
    "gpu_name": "name",
    "gpu_cc": "compute_cap",
    "gpu_uuid_list": "uuid",
    "gpu_power_limit_w": "power.limit",
    "pcie_gen": "pcie.link.gen.current",
    "driver_version": "driver_version",
}


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a run here would see, in nvidia-smi's words; `rows` is empty where there are none."""

    rows: Sequence[Sequence[str]]

    @classmethod
    def seen(cls) -> "Gpus":
        return cls(ask_nvidia_smi(tuple(QUERY.values())) or [])

    @classmethod
    def of_row(cls, row: Mapping[str, str]) -> "Gpus":
        """Return the first GPU that a run of the manifest had."""
        return cls([[row[column] for column in QUERY]] if row["gpu_cc"] else [])

    @property
    def precision(self) -> str:
        """The precision to compute in: bf16 where all GPUs have it, fp16 on older ones, fp32 on a CPU."""
        if not self.rows:
            return "fp32"
        return "bf16" if all(float(row[1]) >= 8.0 for row in self.rows) else "fp16"

    def facts(self) -> dict[str, str]:
        """Return the columns of the manifest: those of the first GPU, and the identities of all."""
        if not self.rows:
            return dict.fromkeys(QUERY, "")
        found = dict(zip(QUERY, self.rows[0], strict=True))
        return found | {"gpu_uuid_list": ";".join(row[2] for row in self.rows)}


def ask_nvidia_smi(fields: Sequence[str]) -> list[list[str]] | None:
    """Return a row a GPU that CUDA_VISIBLE_DEVICES leaves visible; None where nvidia-smi is missing, fails or hangs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None or (visible is not None and visible.strip() in ("", "-1")):
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    if visible is not None:
        command.append(f"--id={visible}")
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in run.stdout.splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def free_port(base: int) -> int:
    """Return the first port from `base` on that nobody listens on. ValueError if there is none near."""
    for port in range(base, base + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise ValueError(f"launch.master_port_base={base}: none of the {PORTS_TRIED} ports from there on is free")
