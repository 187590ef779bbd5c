"""Finds the line of a user's code that an exception comes from.

A user's code is an environment, a loss, a config file, and what they call: any file
that is neither of this package nor of Python or a library that this package uses.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

STATUS = 3
"""The exit status of a command that ends because a user's code failed."""


class UserCodeError(ValueError):
    """A user's file raised an exception. The message is one line with file and line."""

    status = STATUS


_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_collections", "absl")
# wandb replaces `sys.exit` by a function of its own.
_LIBRARIES += ("gymnasium", "mujoco", "wandb", "optuna", "dm_control")
_OF_A_LIBRARY = re.compile(rf"[/\\](site|dist)-packages[/\\]({'|'.join(_LIBRARIES)})\b")
_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
_PYTHON = sysconfig.get_paths()["stdlib"] + os.sep
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
# A frame in the text of XLA's error for an exception in a callback.
_FRAME = re.compile(r'^ *File "(.+)", line (\d+).*$', re.MULTILINE)
# The messages of these classes name the environment and what it raised.
_OUR_CLASS = re.compile(r"^([\w.]+\.)?(Broken)?EnvError: ")


def one_line(error: BaseException) -> str:
    """Returns class and first line of an exception, and where a user's code raised it.

    Args:
      error: an exception that this package caught.

    Returns:
      Such as `"KeyError: 'mass' (envs/spring.py:12)"`.
    """
    place = raised_at(error)
    return reason(error) if place is None else f"{reason(error)} ({place})"


def raised_at(error: BaseException) -> str | None:
    """Returns the innermost line of a user's code that led to an exception.

    Args:
      error: an exception that this package caught, or an error of XLA whose text has
        the traceback of a callback.

    Returns:
      `"FILE:LINE"`, or None if this package called no user's code.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return _place(error.filename, error.lineno)
    for frames in (_frames_of_text(error), _frames(error)):
        is_called, place = False, None
        for filename, line in frames:
            # Frames in front of ours are of the program that called this package.
            if _is_library(filename):
                is_called = True
            elif is_called:
                place = _place(filename, line)
        if place is not None:
            return place
    return None


def reason(error: BaseException) -> str:
    """Returns class and first line of what failed, also of an exception in a callback.

    Args:
      error: an exception, perhaps an error of XLA.
    """
    text = str(error).strip()
    if not _FRAME.search(text):
        lines = text.splitlines()
        return ": ".join([type(error).__name__, *lines[:1]])
    after = _FRAME.split(text)[-1].splitlines()
    # Lines of source code are indented.
    lines = [line for line in after if line and not line.startswith(" ")]
    return _OUR_CLASS.sub("", "".join(lines[:1])).strip(": ")


def stacklevel() -> int:
    """Returns the `stacklevel` with which the caller warns of the user's line."""
    levels = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_library(frame.f_code.co_filename):
        frame, levels = frame.f_back, levels + 1
    return levels


def defined_at(function: Callable) -> str:
    """Returns `"FILE:LINE"` of a user's function, or its text if it has no code."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return _place(code.co_filename, code.co_firstlineno) if code else repr(function)


def _frames(error: BaseException) -> list[tuple[str, int]]:
    summary = traceback.extract_tb(error.__traceback__)
    return [(frame.filename, frame.lineno or 0) for frame in summary]


def _frames_of_text(error: BaseException) -> list[tuple[str, int]]:
    return [(name, int(line)) for name, line in _FRAME.findall(str(error))]


def _is_library(filename: str) -> bool:
    if filename.startswith("<"):  # generated code, other than a cell of a notebook
        return not filename.startswith("<ipython")
    if filename.startswith(_PACKAGE) or _OF_A_LIBRARY.search(filename):
        return True
    return filename.startswith(_PYTHON) and not _INSTALLED.search(filename)


def _place(filename: str, line: int) -> str:
    """A file below the working folder has its path, any other one only its name."""
    path, here = Path(filename), Path.cwd()
    name = path.relative_to(here) if path.is_relative_to(here) else path.name
    return f"{name}:{line}"
