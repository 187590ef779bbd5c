"""`vagram study`: which study it runs, with which settings."""

import json
import sys

import commands
import pytest

STUDIES = """
import importlib
def descriptions():
    return {"capacity": "return against the width of the model"}
def load(name):
    return importlib.import_module("experiments.studies." + name)
"""
STUDY = """
import json
def run(preset, folder, *, options, num_seeds=None, first_seed=None):
    print(json.dumps([preset, str(folder), num_seeds, first_seed, options.resume]))
    return 4
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one study, as the working folder."""
    studies = tmp_path / "experiments" / "studies"
    studies.mkdir(parents=True)
    (studies.parent / "__init__.py").write_text("")
    (studies.parent / "findings.py").write_text("def write():\n    return ['page']\n")
    (studies / "__init__.py").write_text(STUDIES)
    (studies / "capacity.py").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    for name in [name for name in sys.modules if name.split(".")[0] == "experiments"]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "experiments"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], ["quick", "results/capacity-quick", None, None, False]),
        (
            ["--preset=full", "--study_seeds=8", "--first_seed=5", "--resume"],
            ["full", "results/capacity-full", 8, 5, True],
        ),
        (
            ["--results=elsewhere", "--study=mine"],
            ["quick", "elsewhere/mine", None, None, False],
        ),
    ],
)
def test_study_runs_a_study_of_the_checkout(checkout, args, expected):
    status, out, err = commands.call("study", "capacity", *args)
    assert (status, err) == (4, "")
    preset, folder, *rest = expected
    folder = checkout.resolve() / folder
    assert json.loads(out) == [preset, str(folder), *rest]
    assert folder.is_dir()


def test_study_runs_a_file_of_the_user(checkout):
    (checkout / "mine.py").write_text("import experiments\n" + STUDY)
    status, out, err = commands.call("study", "mine.py")
    assert (status, err) == (4, "")
    assert json.loads(out)[1] == str(checkout.resolve() / "results/mine-quick")


def test_study_without_a_name_lists_the_studies(checkout):
    status, out, _ = commands.call("study")
    assert (status, out.split()[:3]) == (0, ["capacity", "return", "against"])


def test_study_writes_the_findings(checkout):
    assert commands.call("study", "--write_findings") == (0, "written: page\n", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["capacit"],
            "study capacit: unknown study; did you mean capacity? accepted: ",
        ),
        (["zzz"], "study zzz: unknown study; accepted: capacity, or a Python file"),
        (["capacity", "two"], "study capacity two: one name, or none with --write_f"),
        (["capacity", "--write_findings"], "study capacity: one name, or none with "),
        (["capacity", "--study_seeds=2"], "--study_seeds=2; at least 3: an interval "),
        (["capacity", "--first_seed=-1"], "--first_seed=-1; at least 0"),
        (
            ["capacity", "--preset=long"],
            "--preset=long: the study capacity doesn't have it; accepted: quick, full",
        ),
        (["capacity", "--preset=fast"], "--preset=fast; accepted: quick, long, full"),
        (["none.py"], "study none.py: no such file"),
        (["empty.py"], "study empty.py: it has no function run"),
    ],
)
def test_study_refuses_other_input_in_one_line(checkout, args, message):
    (checkout / "empty.py").write_text("")
    status, out, err = commands.call("study", *args)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not (checkout / "results").exists()


@pytest.mark.parametrize("code", ["1 / 0", "raise SystemExit(0)"])
def test_a_file_that_fails_is_named_with_the_line(checkout, code):
    (checkout / "broken.py").write_text(f"\n{code}\n")
    status, out, err = commands.call("study", "broken.py")
    assert (status, out) == (3, "")
    assert err.startswith("study broken.py: it raised ")
    assert err.endswith(" (broken.py:2); repair it\n")
