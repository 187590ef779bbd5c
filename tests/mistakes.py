"""Makes the mistakes of `mistake_cases` and `mistake_calls`, and writes their page.

    python tests/mistakes.py        or make mistakes

Everything runs in this process. A command must end with one line, before it writes
anything or compiles a program of training.
"""

import contextlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import commands
import jax
import mistake_calls
import mistake_cases
import pytest

from vagram_jax.losses import LOSSES
from vagram_jax.run import devices, vectorized

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mistakes.md"

_INTRODUCTION = """\
# Mistakes

What a mistake leads to: one line that says where, which value, what is accepted and
what to do. A command ends with the [exit status](commands.md#exit-statuses) in the
second column, before it trains or writes anything; a function raises the error there.
`make mistakes` makes every mistake on this page and writes the page.

## At the command line
"""


class Row(NamedTuple):
    """A row of a table: the mistake, exit status or error class, and the message."""

    mistake: str
    kind: str
    message: str


def contents(folder):
    """Every file with its bytes, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def code_of(case):
    """The code of a case, which is in backquotes at its end."""
    return re.fullmatch(r".*: `(.*)`", case)[1]


@contextlib.contextmanager
def prepared(group) -> Iterator[Path]:
    """Enters a new folder with the files of a group, and yields it."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name).resolve()
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        patch.delitem(sys.modules, "my_tasks", raising=False)
        # The numbers in the messages must not depend on the machine.
        patch.setattr(devices, "memory_limit", lambda: 16e9)
        patch.setenv("JAX_NUM_CPU_DEVICES", str(jax.local_device_count()))
        patch.setattr(vectorized, "make_programs", _refuse_to_train)
        # A study may have registered losses of its own in this process.
        for loss in [x for x in LOSSES.values() if not _is_ours(x)]:
            patch.delitem(LOSSES, loss.name)
        for file, text in mistake_cases.USER_FILES.items():
            Path(file).write_text(text)
        group.prepare(patch)
        yield folder
        sys.modules.pop("my_tasks", None)


def _is_ours(loss):
    return loss.fn.__module__.startswith("vagram_jax.")


def _refuse_to_train(*_):
    raise AssertionError("the command would train")


def rows_of_commands(group):
    """Runs the commands of a group; returns a row for each."""
    rows = []
    with prepared(group) as folder:
        for case in group.cases:
            before = contents(folder)
            status, out, err = commands.call(*shlex.split(code_of(case))[1:])
            assert out == "", case
            assert err.count("\n") == 1, case
            assert contents(folder) == before, case
            message = err.removesuffix("\n").replace(f"{folder}/", "")
            rows.append(Row(case, str(status), message))
    return rows


def rows_of_calls(group, names):
    """Evaluates the expressions of a group with some names; returns a row for each."""
    rows = []
    with prepared(group) as folder:
        for case in group.cases:
            with pytest.raises(Exception) as caught:
                eval(code_of(case), dict(names))  # noqa: S307 (our own text)
            message = str(caught.value).replace(f"{folder}/", "")
            assert "\n" not in message, case
            rows.append(Row(case, type(caught.value).__name__, message))
    return rows


def names_of_calls():
    """The names that the expressions use."""
    names = {}
    code = compile(mistake_calls.EXAMPLE, "example.py", "exec")
    exec(code, names)  # noqa: S102 (our own text)
    return names


def table(heading, kind, rows):
    """A section of the page."""
    lines = [f"### {heading}", "", f"| mistake | {kind} | message |", "|---|---|---|"]
    lines += [
        f"| {row.mistake} | {row.kind} | {_code(row.message)} |".replace("\\|", "|")
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _code(text):
    marks = "``" if "`" in text else "`"
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{marks}{space}{text}{space}{marks}".replace("|", "\\|")


def page():
    """The text of the page."""
    names = names_of_calls()
    parts = [_INTRODUCTION]
    for group in mistake_cases.COMMANDS:
        parts.append(table(group.heading, "status", rows_of_commands(group)))
    parts.append(f"## In Python\n\n```python\n{mistake_calls.EXAMPLE}```\n")
    for group in mistake_calls.CALLS:
        parts.append(table(group.heading, "error", rows_of_calls(group, names)))
    return "\n".join(parts)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax.block_until_ready(jax.numpy.zeros(()))  # as in the tests, JAX is in use
    PAGE.write_text(page())
