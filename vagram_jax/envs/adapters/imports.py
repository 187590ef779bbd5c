"""Imports other libraries, and reports a missing library or an unknown name."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from vagram_jax import user_code
from vagram_jax.envs import base


def library(module: str, where: str, *, install: str) -> Any:
    """Imports a module without messages on standard output.

    Args:
      module: its import path.
      where: the environment that needs it, for the error message.
      install: what to `pip install`.

    Raises:
      EnvError: the module isn't installed.
    """
    try:
        # MJX prints that Warp is missing, which isn't needed here.
        with contextlib.redirect_stdout(io.StringIO()), no_deprecation_warnings():
            return importlib.import_module(module)
    except ImportError as error:
        raise base.EnvError(
            f"{where}: {user_code.one_line(error)}; pip install {install}"
        ) from error


@contextlib.contextmanager
def no_deprecation_warnings() -> Iterator[None]:
    """Ignores warnings that Brax and its dependencies are no longer maintained."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Brax System", UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def check_known(name: str, known: Iterable[str], where: str) -> None:
    """Raises an error with similar names if a library has no such environment.

    Raises:
      EnvError: `name` is not one of `known`.
    """
    if name not in known:
        raise base.EnvError(f"{where}: no such environment; {similar(name, known)}")


def similar(name: str, known: Iterable[str]) -> str:
    """Returns the names similar to `name`, or all names if none is, for a message."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower)
    listed = ", ".join([by_lower[each] for each in near] or sorted(known))
    return f"{'near' if near else 'known'}: {listed}"
