"""The command `vagram`: its subcommands, as a user starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import commands
import pytest

from vagram_jax.cli import configs, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arg", ["--help", "-h", "help"])
def test_help_lists_every_command_in_one_line(arg):
    status, out, err = commands.call(arg)
    assert (status, err) == (0, "")
    for name, command in main.COMMANDS.items():
        assert f"  {name:11}{command.about}\n" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "vagram trian: unknown command; did you mean train?"),
        (["zzz"], "vagram zzz: unknown command; accepted: train, compare, sweep, "),
        ([], "vagram: the first argument is one of train, compare, sweep, tune, "),
        (["--config=hopper"], "vagram --config=hopper: the first argument is one of "),
        (["train", "hopper"], "hopper: not a flag; flags are written --name=value"),
        (["status", "--config=hopper"], "--config: this command takes no config; "),
        (["report"], "report: name at least one folder of a study"),
    ],
)
def test_an_unknown_command_or_argument_is_one_line_with_status_2(args, message):
    status, out, err = commands.call(*args)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_has_every_flag_and_key_once_with_a_description(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, err = commands.call(name, "--help")
    assert (status, err) == (0, "")
    assert f"    vagram {name}" in out
    assert max(map(len, out.splitlines())) <= 88
    _, *options = re.split(r"(?m)^  --", out)
    texts = {}
    for option in options:
        start, _, text = option.partition(" " * 2 if "  " in option else "\n")
        texts[re.split("[=\n]", start)[0]] = " ".join(text.split("\n\n")[0].split())
    assert len(texts) == len(options)
    assert [key for key, text in texts.items() if len(text) < 9] == []
    keys = configs.keys(*configs.CONFIGS) if main.COMMANDS[name].takes_configs else []
    listed = [key for key in texts if key.startswith("config.")]
    assert sorted(listed) == sorted(f"config.{key}" for key in keys)
    assert {"debug", "help", "flagfile"} <= set(texts)
    assert ("config" in texts) == bool(keys)
    if "seed_mode" in texts:
        assert texts["seed_mode"].endswith("Accepted: vmap, serial.")


FLAGS_READ = re.compile(r"^([A-Z_]+) = flags\.DEFINE_\w+\(\s*\"(\w+)\"", re.MULTILINE)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_has_the_flags_of_the_command_and_of_what_it_shares(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, out, _ = commands.call(name, "--help")
    files = {
        each: (ROOT / main.COMMANDS[each].module.replace(".", "/")).with_suffix(".py")
        for each in main.COMMANDS
    }
    trains = ("train", "compare", "sweep", "tune", "study")
    sources = {name, *(["train"] if name in trains else [])}
    for source in sources:
        for _, flag in FLAGS_READ.findall(files[source].read_text()):
            assert f"\n  --{flag}" in out
    assert ("--against" in out) == (
        name in ("train", "compare", "sweep", "tune", "report")
    )


def test_commands_that_only_read_files_never_load_jax(tmp_path):
    code = """
import sys
from vagram_jax.cli import main
for args in (["--help"], ["status", "--help"], ["report", "--help"], ["status", "."],
             ["report", "."], ["watch", "--help"], ["watch", "."]):
    try:
        main.main(["vagram", *args])
    except SystemExit:
        pass
assert "vagram_jax.cli.status" in sys.modules and "vagram_jax.cli.report" in sys.modules
assert "vagram_jax.cli.watch" in sys.modules
assert "vagram_jax.cli.train" not in sys.modules
print(sorted({"jax", "flax", "optax"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_report_refuses_a_folder_without_a_run(tmp_path):
    status, out, err = commands.call("report", str(tmp_path))
    assert (status, out) == (5, "")
    assert "no run in it" in err


@pytest.mark.parametrize("command", ["study", "benchmark"])
def test_study_and_benchmark_need_a_checkout(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    status, out, err = commands.call(command)
    assert (status, out) == (2, "")
    assert "run the command in a checkout of the repository" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_missing_platform_is_one_line(tmp_path, platform):
    done = subprocess.run(
        [sys.executable, "-m", "vagram_jax", "train", f"--results={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platform},
    )
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 6
    assert error.startswith(f"JAX_PLATFORMS={platform}: ")
    assert error.endswith("install that platform's JAX, or unset JAX_PLATFORMS")
    assert not list(tmp_path.iterdir())
