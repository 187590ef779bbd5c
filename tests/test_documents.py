"""Documents match the code.

Every Python block of the README and of docs/*.md runs, and every command in their shell
blocks is parsed. A block that takes minutes begins with "```python slow"; it runs with
the slow tests.
"""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vagram_jax import losses

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]


def blocks(language):
    """The code blocks of a language in all documents: name, first line, text, slow."""
    for path in DOCUMENTS:
        text = path.read_text()
        for block in re.finditer(r"^```(\w+)(.*)\n([\s\S]*?)^```", text, re.MULTILINE):
            if block[1] == language:
                line = text[: block.start(3)].count("\n")
                name = f"{path.relative_to(ROOT)}:{line + 1}"
                yield name, line, block[3], "slow" in block[2]


def python_blocks():
    for name, line, text, is_slow in blocks("python"):
        marks = [pytest.mark.slow] if is_slow else []
        yield pytest.param(line, text, id=name, marks=marks)


@pytest.mark.parametrize(("line", "code"), [*python_blocks()])
def test_a_python_block_of_the_documents_runs(line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A loss that a block registers doesn't stay in the registry.
    monkeypatch.setattr(losses.registry, "LOSSES", dict(losses.LOSSES))
    block = tmp_path / "block.py"
    block.write_text("\n" * line + code)  # tracebacks show the document's line numbers
    runpy.run_path(str(block))


def commands(program):
    """Every command of the documents' shell blocks that starts with a program."""
    for name, _, text, _ in blocks("bash"):
        for command in text.replace("\\\n", " ").splitlines():
            words = shlex.split(command, comments=True)
            if words[:1] == [program]:
                yield name, words


# Each command is parsed in a fork of one process, so that what all of them need is
# imported once. A command reads its whole command line before it shows its help.
PARSE = """
import contextlib, io, json, os, runpy, sys
import vagram_jax.analysis.report, vagram_jax.run.grid, vagram_jax.run.session
for words in json.loads(sys.argv[1]):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        sys.argv = [*words, "--help"]
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module("vagram_jax", run_name="__main__", alter_sys=True)
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_the_vagram_commands_of_the_documents_are_understood():
    places = {shlex.join(words): name for name, words in commands("vagram")}
    lines = [shlex.split(line) for line in places]
    done = subprocess.run(
        [sys.executable, "-c", PARSE, json.dumps(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    statuses = [int(word) for word in done.stdout.split()]
    failed = [
        f"{place}: {line}"
        for (line, place), status in zip(places.items(), statuses, strict=True)
        if status != 0
    ]
    assert failed == [], done.stderr.splitlines()[-1]


def test_the_make_targets_of_the_documents_exist():
    for name, words in commands("make"):
        done = subprocess.run(
            ["make", "--dry-run", *words[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"


def test_links_between_documents_lead_to_files():
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in DOCUMENTS
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert broken == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_promises_name_tests_that_exist():
    page = (ROOT / "docs/promises.md").read_text()
    missing = [
        f"{file}::{name}"
        for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", page)
        if not any(
            f"def {name}(" in p.read_text() for p in ROOT.glob(f"tests/**/{file}")
        )
    ]
    assert missing == []
