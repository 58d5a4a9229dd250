"""Who am I among the ranks: one start for torchrun, srun and a process alone, and the small votes between ranks.

Counts and votes travel as CPU tensors over a gloo group of their own, so that they never queue behind
gradients on the accelerator and never make the host wait for it.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store

RENDEZVOUS_TIMEOUT_S = 120.0
COLLECTIVE_TIMEOUT_S = 600.0
SAVE_TIMEOUT_S = 3600.0  # ranks that wrote their part wait for the slowest writer


class RendezvousError(RuntimeError):
    """The error of ranks that never came; the message names them."""


@dataclass(frozen=True)
class Ranks:
    """A process's place. `dp` splits the data, `tp` splits layers; ranks of one tp group see the same batches."""

    rank: int
    local_rank: int
    world_size: int
    dp_rank: int
    dp_size: int
    tp_rank: int
    tp_size: int
    device: torch.device
    mesh: DeviceMesh | None = None  # dims "dp", "tp"; None for a process alone
    votes: dist.ProcessGroup | None = None  # gloo over all ranks: counts, stop votes, objects
    saves: dist.ProcessGroup | None = None  # gloo over all ranks: checkpoints being written in the background

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return True on every rank if it is true on one."""
        return self.maximum([int(flag)])[0] > 0

    def all(self, flag: bool) -> bool:
        return not self.any(not flag)

    def maximum(self, values: Sequence[float]) -> list[float]:
        return self._reduced(values, dist.ReduceOp.MAX)

    def total(self, values: Sequence[float]) -> list[float]:
        """Return sums over all ranks. Every tp rank counts: give the numbers on one rank of a tp group only."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def _reduced(self, values: Sequence[float], op: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.votes is not None:
            dist.all_reduce(tensor, op=op, group=self.votes)
        return tensor.tolist()

    def total_later(self, values: Sequence[float]) -> "PendingTotal":
        """Start a sum over all ranks, and return a handle for it: `.result()`."""
        tensor = torch.tensor(values, dtype=torch.float64)
        work = None if self.votes is None else dist.all_reduce(tensor, group=self.votes, async_op=True)
        return PendingTotal(tensor, work)

    def gather(self, item: Any) -> list[Any]:
        """Return the small picklable `item` of every rank, on every rank, in rank order."""
        if self.votes is None:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item, group=self.votes)
        return items

    def from_first(self, item: Any) -> Any:
        """Return rank 0's item on every rank."""
        if self.votes is None:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0, group=self.votes)
        return box[0]

    def barrier(self) -> None:
        if self.votes is not None:
            dist.barrier(group=self.votes)


@dataclass
class PendingTotal:
    """A sum over ranks that is under way."""

    tensor: torch.Tensor
    work: Any

    def result(self) -> list[float]:
        if self.work is not None:
            self.work.wait()
        return self.tensor.tolist()


def place() -> tuple[int, int, int]:
    """Return (rank, local rank, world size) as torchrun or srun say it; (0, 0, 1) for a process alone."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env.get("LOCAL_RANK", "0")), int(env["WORLD_SIZE"])
    if "SLURM_STEP_ID" in env and int(env.get("SLURM_NTASKS", "1")) > 1 and "MASTER_ADDR" in env:
        return int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), int(env["SLURM_NTASKS"])
    return 0, 0, 1


def choose_device(name: str, local_rank: int) -> torch.device:
    """Return this rank's GPU for `auto` where there is one, else the CPU. ValueError for a GPU that is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    index = 0 if visible == 1 else local_rank  # srun may show every task only its own GPU
    if not torch.cuda.is_available() or index >= visible:
        raise ValueError(
            f"run.device={name}: local rank {local_rank} finds {visible} GPUs; start at most one rank a GPU, or cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def init(*, tp_size: int = 1, device: str = "auto") -> Ranks:
    """Join the other ranks. ValueError for sizes that do not fit, RendezvousError when ranks are missing."""
    rank, local_rank, world_size = place()
    if world_size % tp_size:
        valid = [str(size) for size in range(1, world_size + 1) if world_size % size == 0]
        raise ValueError(
            f"parallel.tp_size={tp_size} must divide the world size {world_size}; use {' or '.join(valid)}"
        )
    chosen = choose_device(device, local_rank)
    sizes = {"rank": rank, "local_rank": local_rank, "world_size": world_size, "device": chosen}
    axes = {"dp_rank": rank // tp_size, "dp_size": world_size // tp_size, "tp_rank": rank % tp_size, "tp_size": tp_size}
    if world_size == 1:
        return Ranks(**sizes, **axes)  # type: ignore[arg-type]
    store = _rendezvous(rank, world_size)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=chosen if chosen.type == "cuda" else None,
    )
    mesh = init_device_mesh(chosen.type, (world_size // tp_size, tp_size), mesh_dim_names=("dp", "tp"))
    votes = dist.new_group(backend="gloo", timeout=timeout)
    saves = dist.new_group(backend="gloo", timeout=timedelta(seconds=SAVE_TIMEOUT_S))
    return Ranks(**sizes, **axes, mesh=mesh, votes=votes, saves=saves)  # type: ignore[arg-type]


def _rendezvous(rank: int, world_size: int) -> Store:
    """Meet at MASTER_ADDR:MASTER_PORT within the timeout, else say which ranks are missing."""
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    agent_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    timeout = timedelta(seconds=float(os.environ.get("BATON_RENDEZVOUS_TIMEOUT_S", RENDEZVOUS_TIMEOUT_S)))
    deadline = time.monotonic() + timeout.total_seconds()
    try:
        is_master = rank == 0 and not agent_has_it
        # torch exports TCPStore without saying so to type checkers
        tcp_store = dist.TCPStore  # type: ignore[attr-defined]
        store = tcp_store(address, port, None, is_master, timeout=timeout, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        who = f"rank {rank} on {socket.gethostname()}"
        raise RendezvousError(f"{who} cannot meet at {address}:{port}: {error}") from error
    # A restarted torchrun keeps its store: the restart count keeps this meeting apart from the one before.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    meeting = PrefixStore(f"baton/{attempt}", store)
    meeting.set(f"here/{rank}", socket.gethostname())
    missing = [r for r in range(world_size) if not _arrives(meeting, f"here/{r}", deadline)]
    if missing:
        raise RendezvousError(
            f"ranks {missing} of {world_size} did not come to {address}:{port} in {timeout.total_seconds():.0f} s; "
            "look at their nodes' logs"
        )
    return meeting


def _arrives(store: Store, key: str, deadline: float) -> bool:
    left = max(deadline - time.monotonic(), 0.01)
    try:
        store.wait([key], timedelta(seconds=left))
    except dist.DistStoreError:
        return False
    return True


def close() -> None:
    """Leave the group; safe to call alone or twice."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined(*, tp_size: int = 1, device: str = "auto") -> Iterator[Ranks]:
    """Call `init` and `close` around a block."""
    try:
        yield init(tp_size=tp_size, device=device)
    finally:
        close()
