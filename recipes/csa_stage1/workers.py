"""The processes that convert clips beside a rank of `prepare`, and a bar that shows how far they are."""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import torch
from rich.progress import track

from core.signals import ignore_stop_signals

Item = TypeVar("Item")

_LOOK_EVERY_S = 2.0


def with_progress(items: Iterable[Item], what: str, num: int | None = None) -> Iterator[Item]:
    """Yield the items with a progress bar, where there is a terminal."""
    return iter(track(items, what, num, transient=True) if sys.stdout.isatty() else items)


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    start = partial(_start_worker, os.getpid())
    with ProcessPoolExecutor(num_workers, mp_context=get_context("fork"), initializer=start) as pool:
        yield pool


def _start_worker(parent: int) -> None:
    ignore_stop_signals()
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """End with the process that started this one: killed, it cannot say so, and its workers would wait for ever."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)
