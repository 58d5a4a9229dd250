"""Run a function on N real gloo ranks in forked processes, and get what each returned."""

import os
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from core import distributed


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_on_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, tp_size: int = 1, timeout_s: float = 120
) -> list:
    """`function(ranks, *args)` on every rank; the results in rank order. A rank's exception fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("fork")
        port = free_port()
        processes = [
            context.Process(target=_rank, args=(function, rank, world_size, port, tp_size, folder, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout_s)
        hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        results = []
        for rank in range(world_size):
            path = Path(folder, f"rank{rank}")
            outcome = pickle.loads(path.read_bytes()) if path.exists() else ("died", f"exit {processes[rank].exitcode}")
            results.append(outcome)
        failures = [f"rank {rank}: {value}" for rank, (kind, value) in enumerate(results) if kind != "ok"]
        assert not hung, f"ranks {hung} hung; {failures}"
        assert not failures, "\n".join(failures)
        return [value for _, value in results]


def _rank(function: Any, rank: int, world_size: int, port: int, tp_size: int, folder: str, args: tuple) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    torch.set_num_threads(1)
    outcome: tuple[str, Any]
    try:
        with distributed.joined(tp_size=tp_size, device="cpu") as ranks:
            outcome = ("ok", function(ranks, *args))
    except BaseException:
        outcome = ("failed", traceback.format_exc())
    temporary = Path(folder, f".rank{rank}")
    temporary.write_bytes(pickle.dumps(outcome))
    temporary.rename(Path(folder, f"rank{rank}"))
    os._exit(0)  # gloo threads may abort an ordinary interpreter exit
