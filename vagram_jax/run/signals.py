"""Stopping a run: a signal ends training after the epoch, a second one at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

from vagram_jax.run import devices

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
    """Catches signals while the block runs. A second one raises KeyboardInterrupt."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may have handlers
        return

    def handle(number, _):
        if stop.signal:
            raise KeyboardInterrupt
        stop.signal = number
        print(
            f"{signal.Signals(number).name}: saving after this epoch; send it again to "
            "exit at once",
            file=sys.stderr,
        )

    previous = {number: signal.signal(number, handle) for number in _CAUGHT}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
