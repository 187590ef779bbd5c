"""A command as a job of submitit, which is queued again when its time is over.

submitit pickles the job. This module imports neither JAX nor flags, so that the process
that waits for the command stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

# Seconds after which a signal that was sent to all processes of a job has arrived.
_SIGNAL_DELAY_S = 30.0


class Job:
    """Runs a command. If the job is signaled, the command saves and the job is queued.

    SLURM sends SIGUSR2 before the time limit, and when another job takes the machine.
    submitit then calls `checkpoint` and queues what it returns: the same command, which
    has to resume by itself.
    """

    def __init__(self, command: Sequence[str]):
        """Takes the program and its arguments."""
        self._command = list(command)
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Runs the command.

        Raises:
          RuntimeError: it failed. Its own messages are in the log of the job.
        """
        self._process = subprocess.Popen(self._command)
        status = self._process.wait()
        if status in (-signal.SIGUSR2, 128 + signal.SIGUSR2):
            time.sleep(_SIGNAL_DELAY_S)  # the command was signaled before this process
        if status:
            raise RuntimeError(f"the command ended with status {status}")

    def checkpoint(self) -> Any:
        """Stops the command after it has saved; returns the job to queue again."""
        import submitit

        if (process := self._process) is not None:
            process.send_signal(signal.SIGUSR2)
            # submitit interrupts `wait` to call this, so `wait` can't be called here.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self._command))
