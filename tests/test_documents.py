"""Documents match the code.

Every Python block of README.md, CONTRIBUTING.md and docs/ runs: the blocks of a page
one after the other, with shared names, like the cells of a notebook. A block whose
first line is a comment with the name of a file is also written to that file. Every
command of a shell block is parsed, and those that only read results run. The results
are those of the quick start's comparison, trained once with a tiny model for few steps.
"""

import configparser
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest

from vagram_jax import losses
from vagram_jax.cli import configs

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
STUDY = "results/pendulum-15"
# Appended to the command that trains the study.
TINY = """
--config.num_seeds=2 --config.total_steps=14 --config.warmup_steps=8
--config.steps_per_epoch=3 --config.eval_episodes=1 --config.replay_capacity=20
--config.batch_size=4 --config.updates_per_step=1 --config.episode_length=12
--config.dynamics.hidden=() --config.dynamics.num_members=1
--config.dynamics.num_elites=1 --config.fit.batch_size=4 --config.fit.max_epochs=1
--config.imagine.rollouts_per_step=1 --config.sac.hidden=() --losses=vagram
"""
READERS = ("report", "render", "status", "inspect", "export")
"""The subcommands that only read results."""


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    """The code blocks of a document in a language: number of the first line, text."""
    text = path.read_text()
    for block in re.finditer(r"^```(\w+)\n([\s\S]*?)^```", text, re.MULTILINE):
        if block[1] == language:
            yield text[: block.start(2)].count("\n"), block[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which the first command of the quick start was run, shortened."""
    folder = tmp_path_factory.mktemp("trained")
    lines = [words for _, words in shell(ROOT / "docs/quickstart.md", "vagram")]
    assert lines[0][1] == "compare"
    vagram(*lines[0][1:], *shlex.split(TINY), cwd=folder)
    assert (folder / STUDY / "report.html").exists()
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The working folder of a page, with the results."""
    for name in (STUDY, f"{STUDY}-sweep"):
        shutil.copytree(trained / STUDY, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # A loss that a block registers doesn't stay in the registry.
    monkeypatch.setattr(losses.registry, "LOSSES", dict(losses.LOSSES))
    return tmp_path


def vagram(*args, cwd, code=("-m", "vagram_jax")):
    """Runs `vagram ARGS` in a process of its own and returns its output."""
    settings = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *code, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | settings,
    )
    assert done.returncode == 0, f"{shlex.join(args)}: {done.stderr[-2000:]}"
    return done.stdout


def pages_with_code():
    for path in DOCUMENTS:
        reads = any(words[1] in READERS for _, words in shell(path, "vagram"))
        if reads or any(blocks(path, "python")):
            yield pytest.param(path, id=name_of(path))


def shell(path, program=None):
    """The commands of a document's shell blocks: place and words.

    Without a program, every command; with one, those that start with it.
    """
    for line, text in blocks(path, "bash"):
        for command in text.replace("\\\n", " ").splitlines():
            words = shlex.split(command, comments=True)
            if words[:1] == ["srun"]:
                words = words[1:]
            if words and program in (None, words[0]):
                yield f"{name_of(path)}:{line + 1}", words


def file_of(code):
    """The file that a block belongs to, or None."""
    match = re.match(r"# (\w+\.py)\n", code)
    return match and match[1]


@pytest.mark.parametrize("path", [*pages_with_code()])
def test_the_code_of_a_page_runs(path, place):
    names = {}
    for line, code in blocks(path, "python"):
        file = place / (file_of(code) or "block.py")
        file.write_text("\n" * line + code)  # tracebacks show the page's line numbers
        names = runpy.run_path(str(file), init_globals=names)
    for where, words in shell(path, "vagram"):
        if words[1] in READERS:
            status, _, err = commands.call(*words[1:])
            assert (status, err) == (0, ""), where


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


def test_the_vagram_commands_of_the_documents_are_understood(tmp_path):
    places = {}
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")  # as in a checkout
    for path in DOCUMENTS:
        for _, code in blocks(path, "python"):
            if file_of(code):  # a config of the page
                (tmp_path / file_of(code)).write_text(code)
        places |= {shlex.join(words): where for where, words in shell(path, "vagram")}
    lines = json.dumps([shlex.split(line) for line in places])
    statuses = vagram(lines, cwd=tmp_path, code=("-c", PARSE)).split()
    failed = [
        f"{place}: {line}"
        for (line, place), status in zip(places.items(), statuses, strict=True)
        if status != "0"
    ]
    assert failed == []


def test_the_make_targets_of_the_documents_exist():
    for path in DOCUMENTS:
        for where, words in shell(path, "make"):
            done = subprocess.run(
                ["make", "--dry-run", *words[1:]],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{where}: {done.stderr}"


def test_the_extras_that_the_documents_install_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    unknown = [
        f"{name_of(path)}: {extra}"
        for path in DOCUMENTS
        for extra in re.findall(r"\.\[(\w+)\]", path.read_text())
        if extra not in setup["options.extras_require"]
    ]
    assert unknown == []


def test_every_shell_command_of_the_documents_is_checked():
    programs = {words[0] for path in DOCUMENTS for _, words in shell(path)}
    assert programs == {"make", "pip", "vagram"}


def test_links_between_documents_lead_to_files_and_headings():
    broken = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            file, _, heading = target.partition("#")
            page = path.parent / file if file else path
            if "://" in target:
                continue
            if not page.exists() or (heading and heading not in headings(page)):
                broken.append(f"{name_of(path)}: {target}")
    assert broken == []


def headings(path):
    """The anchors of a page, as GitHub names them."""
    lines = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines}


def test_every_setting_is_on_the_page_of_the_configuration_or_the_environments():
    pages = [ROOT / "docs" / f"{name}.md" for name in ("configuration", "environments")]
    text = "".join(page.read_text() for page in pages)
    words = set(re.findall(r"\w+", text))
    groups = {key.split(".")[0] for key in configs.keys(*configs.CONFIGS) if "." in key}
    missing = [
        key
        for key in configs.keys(*configs.CONFIGS)
        if not key.startswith("termination.") and key.split(".")[-1] not in words
    ]
    assert missing == []
    assert groups <= words


def test_the_reference_has_every_module():
    text = "".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    named = set(re.findall(r"automodule:: (\S+)", text))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in ROOT.glob("vagram_jax/**/*.py")
        if "cli" not in path.parts and path.name != "__main__.py"
    }
    assert modules - named == set()
    assert {name for name in named - modules if ".cli" not in name} == set()


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
