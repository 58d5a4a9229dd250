"""Work in a thread that the process never has to wait for: a crash or a kill of the main thread ends it too."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def in_background(work: Callable[[], None], *, name: str) -> Future[None]:
    """Run `work` in a daemon thread of that name; the future carries its end or its exception.

    concurrent.futures' own executors join their threads at interpreter exit: a rank that dies of an error would
    then hang in a save that waits for the other ranks.
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
