"""Documentation that can't drift: docstrings against signatures, README against code.

A code block of the README that takes minutes is opened with "python slow"; it then
runs with the slow tests.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from flax import linen

import vagram_jax
from vagram_jax import losses

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PUBLIC = getattr(vagram_jax, "__all__", ())
SOURCES = sorted([*ROOT.glob("vagram_jax/**/*.py"), *ROOT.glob("experiments/*.py")])
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def public_definitions(kinds):
    """Every public definition of these kinds, with the object that it makes."""
    for path in SOURCES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, kinds) and not node.name.startswith("_"):
                made = getattr(importlib.import_module(name), node.name)
                yield pytest.param(node, made, id=f"{name}.{node.name}")


def section(made, title):
    """The names that a section of a docstring explains, or None without the section."""
    lines = (inspect.getdoc(made) or "").splitlines()
    if f"{title}:" not in lines:
        return None
    rest = lines[lines.index(f"{title}:") + 1 :]
    names = []
    indent = re.match(" *", rest[0])[0]  # what stands deeper continues an entry
    for line in rest:
        if line and not line.startswith(" "):
            break
        entry = re.match(
            rf"{indent}(\*{{0,2}}\w+(?:, \*{{0,2}}\w+)*)(?: \(.*?\))?:", line
        )
        names += entry[1].split(", ") if entry else []
    return names


def own_nodes(node):
    """The nodes of a function without those of the functions inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
            yield child
            yield from own_nodes(child)


functions = pytest.mark.parametrize(("node", "made"), [*public_definitions(FUNCTIONS)])
classes = pytest.mark.parametrize(("node", "made"), [*public_definitions(ast.ClassDef)])


@functions
def test_args_are_the_parameters_in_order(node, made):
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = [
        stars.get(parameter.kind, "") + parameter.name
        for parameter in inspect.signature(made).parameters.values()
    ]
    assert (section(made, "Args") or []) == parameters


@functions
def test_what_is_returned_is_documented(node, made):
    returns = any(isinstance(n, ast.Return) and n.value for n in own_nodes(node))
    yields = any(isinstance(n, ast.Yield | ast.YieldFrom) for n in own_nodes(node))
    assert (section(made, "Yields") is not None) == yields
    assert (section(made, "Returns") is not None) == (returns and not yields)


@functions
def test_what_is_raised_is_documented(node, made):
    raised = {
        ast.unparse(n.exc.func).split(".")[-1]
        for n in own_nodes(node)
        if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)
    }
    assert raised <= set(section(made, "Raises") or [])


@classes
def test_attributes_are_the_fields(node, made):
    is_tuple = issubclass(made, tuple) and hasattr(made, "_fields")
    if is_tuple:
        fields = list(made._fields)
    elif dataclasses.is_dataclass(made):
        added = {"parent", "name"} if issubclass(made, linen.Module) else set()
        names = [field.name for field in dataclasses.fields(made) if field.init]
        fields = [name for name in names if name not in added]
    else:
        return
    assert (section(made, "Attributes") or []) == fields


def test_section_reads_every_form_of_entry():
    def sample():
        """Says something.

        Args:
          one: a line
            and: its continuation, with a colon
          two, three: both.
          *rest: more.
          **options (dict): more still.

        Returns:
          Nothing: really.
        """

    assert section(sample, "Args") == ["one", "two", "three", "*rest", "**options"]
    assert section(sample, "Raises") is None


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_exists_and_is_documented(name):
    assert inspect.getdoc(getattr(vagram_jax, name))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_tested(name):
    tests = [path for path in ROOT.glob("tests/**/*.py") if path != Path(__file__)]
    word = re.compile(rf"\b{name}\b")
    assert any(word.search(path.read_text()) for path in tests)


@pytest.mark.skipif(not README.exists(), reason="no README yet")
@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_stands_in_the_readme(name):
    assert re.search(rf"\b{name}\b", README.read_text())


def readme_blocks(language):
    """The code blocks of a language, with the line that each starts on."""
    text = README.read_text() if README.exists() else ""
    for block in re.finditer(r"^```(\w+)(.*)\n([\s\S]*?)^```", text, re.MULTILINE):
        if block[1] == language:
            line = text[: block.start(3)].count("\n")
            marks = [pytest.mark.slow] if "slow" in block[2] else []
            yield pytest.param(line, block[3], id=f"line {line + 1}", marks=marks)


def readme_commands():
    """Every `python -m experiments...` and `make ...` of the README's shell blocks."""
    for language in ("bash", "sh", "console"):
        for block in readme_blocks(language):
            line, text = block.values
            for command in text.replace("\\\n", " ").splitlines():
                words = shlex.split(command.removeprefix("$ "), comments=True)
                words = list(itertools.dropwhile(lambda word: "=" in word, words))
                if words[:2] == ["python", "-m"] or words[:1] == ["make"]:
                    yield pytest.param(words, id=f"line {line + 1}: {' '.join(words)}")


@pytest.mark.parametrize(("line", "code"), [*readme_blocks("python")])
def test_a_code_block_of_the_readme_runs(line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What a block registers is gone with it.
    monkeypatch.setattr(losses.registry, "LOSSES", dict(losses.LOSSES))
    block = tmp_path / "readme.py"
    block.write_text("\n" * line + code)  # so that a traceback has the README's lines
    runpy.run_path(str(block))


@pytest.mark.parametrize("words", [*readme_commands()])
def test_a_command_of_the_readme_is_understood(words):
    if words[0] == "make":
        asked = ["make", "--dry-run", *words[1:]]
    else:
        # A command reads all of its command line before it shows its help.
        asked = [sys.executable, *words[1:], "--help"]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        asked,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | path,
    )
    assert done.returncode == 0, done.stderr
