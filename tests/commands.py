"""Runs the command `vagram` in the process of a test."""

import contextlib
import importlib
import io

import pytest
from absl.testing import flagsaver

from vagram_jax.cli import main


def call(*args):
    """Runs `vagram ARGS`; returns exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    if args and args[0] in main.COMMANDS:
        # `flagsaver` would remove the flags of a module that is imported inside of it.
        importlib.import_module(main.COMMANDS[args[0]].module)
    with (
        flagsaver.flagsaver(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        main.main(["vagram", *args])
    return caught.value.code, out.getvalue(), err.getvalue()
