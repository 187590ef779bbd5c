"""Signals that arrive while Python's main thread can't run a handler."""

import signal
import time

import pytest
import subprocesses

# Like a compiler, `pbkdf2_hmac` needs minutes in which Python runs no handler.
BUSY = """
import hashlib
from vagram_jax.run import signals
with signals.catch() as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
print("ended", stop.signal)
"""


def wait_for_line(stream, seconds):
    """The next line, which must come within some seconds."""
    began = time.monotonic()
    line = stream.readline()
    assert time.monotonic() - began < seconds, line
    return line


def start():
    process = subprocesses.start("-c", BUSY)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_second_signal_ends_a_process_that_is_busy_at_once(second):
    process = start()
    # A cluster's signal may come twice, from the cluster and from submitit.
    for _ in range(2):
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.2)
    assert wait_for_line(process.stderr, 3.0) == "SIGUSR2: saving after this epoch\n"
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(second)
    status, out, _ = subprocesses.finish(process)
    assert time.monotonic() - began < 3.0
    assert status == 128 + second
    assert "ended" not in out


CATCH = """
import os, signal, threading
from vagram_jax.run import signals
before = [signal.getsignal(n) for n in signals._CAUGHT], threading.active_count()
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
    with signals.catch() as stop:
        os.kill(os.getpid(), number)
        while not stop.signal:
            pass
        print(stop.signal == number, stop.agreed() == number)
after = [signal.getsignal(n) for n in signals._CAUGHT], threading.active_count()
print(before == after)
def run():
    with signals.catch() as stop:
        print(stop.signal)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def test_catch_restores_handlers_and_does_nothing_outside_the_main_thread():
    status, out, error = subprocesses.finish(subprocesses.start("-c", CATCH))
    assert status == 0, error
    assert out.split() == ["True"] * 7 + ["0"]
