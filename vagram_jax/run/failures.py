"""Failures of training: which file says why a run stopped, and what the user can do."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from vagram_jax.run import devices
from vagram_jax.storage import checkpoint, files, lock

FAILURE = "failure.json"
"""The file in a run's folder that says why it stopped."""

SIGNAL = 128
"""A larger exit status is this plus the number of the signal that stopped the run."""

# How the text of an error of XLA begins.
_XLA_STATUS = re.compile(r"[A-Z_]+: ")


class RunError(RuntimeError):
    """Training had to stop. One line: why, what was saved, how to continue.

    Attributes:
      status: the exit status of a command that ends with this error.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def recorded(folders: Sequence[Path]) -> Iterator[None]:
    """Writes why a run stopped to its folder, unless a signal stopped it."""
    try:
        yield
    except lock.LockedError:
        raise  # the folder may be another process's by now
    except Exception as error:
        if devices.is_first() and getattr(error, "status", 0) <= SIGNAL:
            for folder in folders:
                with contextlib.suppress(files.ResultsError):  # the disk may be full
                    files.write_json(folder / FAILURE, {"reason": str(error)})
        raise


@contextlib.contextmanager
def explained(writer: checkpoint.Writer) -> Iterator[None]:
    """Turns what stops training into a line on what is saved and how to continue.

    Args:
      writer: of the checkpoints; it has finished when the block has ended.

    Yields:
      Nothing.

    Raises:
      ResultsError: a file can't be written.
      RunError: the environment or a program failed, or memory is short.
    """
    try:
        yield
    except (checkpoint.CheckpointError, lock.LockedError):
        raise
    except files.ResultsError as error:
        raise files.ResultsError(
            f"{error}; {_saved(writer)}; continue with --resume once the file can be "
            "written"
        ) from error
    except (jax.errors.JaxRuntimeError, MemoryError, ValueError) as error:
        # From its second call on, a program's errors are ValueErrors that begin with
        # XLA's status (jax-ml/jax issue 34083).
        if isinstance(error, ValueError) and not _XLA_STATUS.match(str(error)):
            raise
        text = str(error).strip().splitlines()
        reason = text[-1] if text else type(error).__name__
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise RunError(
                f"out of memory ({reason}); {_saved(writer)}; set a smaller "
                "--seed_chunk and --resume",
                6,
            ) from error
        raise RunError(
            f"the environment or a program failed ({reason}); {_saved(writer)}; "
            "--debug shows the traceback; continue with --resume",
            3,
        ) from error
    finally:
        writer.wait()  # nothing may be written after the lock is released


def stopped(number: int, writer: checkpoint.Writer) -> RunError:
    """The error of a run that a signal has stopped after it was saved."""
    return RunError(
        f"stopped by {signal.Signals(number).name}; {_saved(writer)}; continue with "
        "--resume",
        SIGNAL + number,
    )


def _saved(writer: checkpoint.Writer) -> str:
    """The last step on the disk, in words, once nothing is being saved."""
    writer.wait()
    if writer.saved is None:
        return "nothing is saved yet"
    return f"saved at step {writer.saved}"
