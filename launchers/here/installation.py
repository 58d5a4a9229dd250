"""pip at work in `.venv`: its output in a log, one line of progress on the terminal. Only the standard library."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from launchers.here.environment import ROOT

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "baton-install.log"


class BootstrapError(RuntimeError):
    """The environment cannot be made; the message says what to do."""


def say(text: str) -> None:
    print(f"baton: {text}", file=sys.stderr, flush=True)


def run_pip(title: str, arguments: list[str], *, lock: int) -> None:
    """Run pip with its output in a log and one line of progress on the terminal."""
    command = [str(PYTHON), "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    env = {**os.environ, "DS_BUILD_OPS": "0", "PIP_USER": "0", "PYTHONUNBUFFERED": "1"}
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PYTHONPATH", "PYTHONHOME"):
        env.pop(name, None)  # they would send the packages elsewhere
    with LOG.open("a", encoding="utf-8") as log, progress(title) as show:
        log.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, pass_fds=(lock,)
        )
        assert process.stdout is not None
        tail: list[str] = []
        try:
            for line in process.stdout:
                log.write(line)
                if not line.startswith("WARNING"):
                    tail = [*tail[-14:], line]
                words = line.split()
                if line.lstrip().startswith(("Collecting", "Downloading", "Building", "Installing")):
                    show(" ".join(words[:2])[:40].rstrip(","))
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code != 0:
        raise BootstrapError(f"pip failed; its last words (all of them are in {LOG}):\n" + "".join(tail))


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Print in one line what is going on and for how long: rewritten on a terminal, every 10 s elsewhere."""
    started, ended, doing = time.monotonic(), threading.Event(), [""]
    is_terminal = sys.stderr.isatty()

    def line() -> str:
        num_installed = len(list(VENV.glob("lib/*/site-packages/*.dist-info")))
        return f"baton: {title}: {time.monotonic() - started:.0f} s, {num_installed} installed  {doing[0]}"

    def keep_showing() -> None:
        while not ended.wait(0.5 if is_terminal else 10.0):
            sys.stderr.write(f"\r\033[K{line()[:78]}" if is_terminal else line() + "\n")
            sys.stderr.flush()

    thread = threading.Thread(target=keep_showing, daemon=True)
    thread.start()
    try:
        yield lambda text: doing.__setitem__(0, text)
        doing[0] = "done"
    finally:
        ended.set()
        thread.join()
        sys.stderr.write(("\r\033[K" if is_terminal else "") + line() + "\n")
        sys.stderr.flush()
