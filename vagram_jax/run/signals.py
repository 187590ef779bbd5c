"""Stopping a run: a signal ends training after the epoch, a second one at once.

SIGUSR1 and SIGUSR2 never end it at once: a cluster sends them before a time limit, and
to every process of a job, which may pass them on.

Python runs a signal handler only between two steps of its main thread, and that thread
waits for a compiler or a program for minutes. So a second thread waits for signals.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from vagram_jax.run import devices

_OF_CLUSTERS = (signal.SIGUSR1, signal.SIGUSR2)
_CAUGHT = (signal.SIGINT, signal.SIGTERM, *_OF_CLUSTERS)


class Stop:
    """The signal that this process has received.

    Attributes:
      signal: its number, 0 without a signal.
    """

    signal = 0

    def agreed(self) -> int:
        """The signal that any process has received: all must stop at the same step."""
        return -devices.agree(-self.signal)


@contextlib.contextmanager
def catch() -> Iterator[Stop]:
    """Catches signals while the block runs.

    A second SIGINT or SIGTERM exits at once with status 128 plus its number. That
    leaves what a killed process leaves: every file is whole or missing.

    Yields:
      The signal.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may have handlers
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_watch, args=(reader, stop), daemon=True)
    thread.start()
    # The system calls what writes the number to the pipe, at any moment.
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _ignore) for number in _CAUGHT}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_writer)
        os.close(writer)
        thread.join()
        os.close(reader)


def _watch(reader: int, stop: Stop) -> None:
    """Acts on the signals whose numbers arrive in a pipe, until it is closed."""
    while received := os.read(reader, 1):
        if (number := received[0]) not in _CAUGHT:
            continue
        if stop.signal and number in _OF_CLUSTERS:
            continue
        if stop.signal:
            os._exit(128 + number)
        stop.signal = number
        line = f"{signal.Signals(number).name}: saving after this epoch"
        if number not in _OF_CLUSTERS:
            line += "; send it again to exit at once"
        print(line, file=sys.stderr, flush=True)


def _ignore(number: int, _) -> None:
    """A handler: without one, Python wouldn't report the signal to the thread."""
