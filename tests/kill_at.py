"""Runs a command that kills or signals itself at a chosen moment.

    python tests/kill_at.py MOMENT COUNT MODULE ARGUMENT...

`MOMENT` is a key of `MOMENTS`; the command dies when it reaches it the COUNT-th time.
With the name of a signal it sends itself that signal before it appends to a table.
"""

import importlib
import os
import runpy
import signal
import sys
import threading
import time

from vagram_jax.storage import checkpoint, disk, files


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(module, name, count, before=die):
    """Replaces a function by one that calls `before` at its `count`-th call."""
    original, calls = getattr(module, name), []

    def replaced(*args, **kwargs):
        calls.append(name)
        if len(calls) == count:
            before(*args) if before is not die else die()
        return original(*args, **kwargs)

    setattr(module, name, replaced)


def half_a_line(file, data, size):
    """Writes the first half of the data and dies."""
    del size
    file.write(data[: len(data) // 2])
    os.fsync(file.fileno())
    die()


def half_an_array(path, arrays):
    """Writes half of the arrays of a checkpoint and dies."""
    WRITE_ARRAYS(path, arrays)
    os.truncate(path, path.stat().st_size // 2)
    die()


def before_log(count):
    """Dies when a row is in its table, but not yet in a log."""
    at_call(importlib.import_module("vagram_jax.run.logs").Logs, "append", count)


def signaled(name):
    """A moment at which the process sends itself a signal."""
    send = lambda *_: os.kill(os.getpid(), signal.Signals[name])  # noqa: E731
    return lambda n: at_call(files, "append_rows", n, send)


WRITE_ARRAYS = checkpoint._write_arrays
MOMENTS = {
    "metrics": lambda n: at_call(files, "_write_or_undo", n, half_a_line),
    "before_metrics": lambda n: at_call(files, "append_rows", n),
    "before_log": before_log,
    "arrays": lambda n: at_call(checkpoint, "_write_arrays", n, half_an_array),
    "digests": lambda n: at_call(checkpoint, "_size_and_digest", n),
    "rename": lambda n: at_call(disk, "rename", n),
    "prune": lambda n: at_call(checkpoint, "prune", n),
    "SIGTERM": signaled("SIGTERM"),
    "SIGUSR2": signaled("SIGUSR2"),
    "after": lambda n: threading.Thread(
        target=lambda: (time.sleep(n / 10), die()), daemon=True
    ).start(),
}

if __name__ == "__main__":
    _, moment, count, module, *rest = sys.argv
    MOMENTS[moment](int(count))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
