"""The signals that ask a job to stop: the main process of a rank notes them, its loader workers ignore them."""

import signal

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


def ignore_stop_signals() -> None:
    """Ignore stop signals in a worker process: only the main process of a rank decides to stop."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
