"""Failures of training: which file says why a run stopped, and what the user can do."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from vagram_jax import user_code
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
def explained(writer: checkpoint.Writer | None) -> Iterator[None]:
    """Turns what stops training into a line on what is saved and how to continue.

    Args:
      writer: of the checkpoints; it has finished when the block has ended. None before
        anything was changed on the disk.

    Yields:
      Nothing.

    Raises:
      ResultsError: a file can't be written.
      RunError: a user's code or a program failed, or memory is short.
    """
    try:
        with _without_logged_tracebacks():
            yield
    except (checkpoint.CheckpointError, lock.LockedError):
        raise
    except (RunError, devices.DeviceError):
        raise
    except files.ResultsError as error:
        raise files.ResultsError(
            f"{error}; {_saved(writer)}; continue with --resume once the file can be "
            "written"
        ) from error
    except (Exception, SystemExit) as error:
        if (explanation := _explanation(error)) is None:
            raise
        text, remedy, status = explanation
        again = "run the command again" if writer is None else "continue with --resume"
        raise RunError(f"{text}; {_saved(writer)}; {remedy}{again}", status) from error
    finally:
        if writer is not None:
            writer.wait()  # nothing may be written after the lock is released


def stopped(number: int, writer: checkpoint.Writer) -> RunError:
    """The error of a run that a signal has stopped after it was saved."""
    return RunError(
        f"stopped by {signal.Signals(number).name}; {_saved(writer)}; continue with "
        "--resume",
        SIGNAL + number,
    )


def _explanation(error: BaseException) -> tuple[str, str, int] | None:
    """Why training stopped, what to do, and the exit status; None for any other error.

    An error of a setting or of this package needs no explanation.
    """
    text, reason = str(error), user_code.reason(error)
    # From its second call on, a program's errors are ValueErrors that begin with XLA's
    # status (jax-ml/jax issue 34083).
    is_xla = isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and _XLA_STATUS.match(text) is not None
    )
    is_full = is_xla and "RESOURCE_EXHAUSTED" in text
    if is_full or isinstance(error, MemoryError):
        return f"out of memory ({reason})", "set a smaller --seed_chunk and ", 6
    debug = "--debug shows the traceback; "
    if (place := user_code.raised_at(error)) is not None:
        return f"{place} raised {reason}", f"{debug}repair it and ", user_code.STATUS
    if is_xla:
        what = f"the environment or a program failed ({reason})"
        return what, debug, user_code.STATUS
    return None


@contextlib.contextmanager
def _without_logged_tracebacks() -> Iterator[None]:
    """Keeps JAX from printing the traceback of a callback, which the error has, too."""
    logger = logging.getLogger("jax._src.callback")
    previous, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = previous


def _saved(writer: checkpoint.Writer | None) -> str:
    """The last step on the disk, in words, once nothing is being saved."""
    if writer is None:
        return "nothing was changed"
    writer.wait()
    if writer.saved is None:
        return "nothing is saved yet"
    return f"saved at step {writer.saved}"
