"""`vagram inspect` and `vagram export`: what they write, print and refuse."""

import re
import sys

import commands
import numpy as np
import policy_cases
import pytest

from vagram_jax.cli import inspect
from vagram_jax.render import film
from vagram_jax.run import trained
from vagram_jax.storage import files


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a model."""
    return policy_cases.saved_with_model(tmp_path_factory.mktemp("run"))


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_inspect_prints_a_table_and_writes_a_csv_file_and_a_figure(run, tmp_path):
    before, saved = names(run), tmp_path / "saved"
    options = ("--seed=4", "--episodes=2", "--horizon=3", f"--save={saved}")
    status, out, err = commands.call("inspect", str(run), *options)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "study/mse, seed 4, trained for 11 steps"
    assert lines[1].split() == ["k=1", "k=2", "k=3"]
    assert lines[-1] == f"{saved}: prediction.csv, prediction.png"
    rows = files.read_rows(saved / "prediction.csv")
    # Two episodes of twelve steps each.
    assert [(row["steps"], row["rows"]) for row in rows] == [(1, 24), (2, 22), (3, 20)]
    printed = {line[:22].strip(): line[22:].split() for line in lines[2:-1]}
    for name, column in (
        ("error of dim 2", "error_dim_2"),
        ("disagreement, dim 0", "disagreement_dim_0"),
        ("error of the value", "value_error"),
    ):
        expected = [row[column] for row in rows]
        assert all(value > 0 for value in expected)
        actual = [float(text) for text in printed[name]]
        np.testing.assert_allclose(actual, expected, rtol=6e-3)  # three digits
    assert (saved / "prediction.png").read_bytes().startswith(b"\x89PNG")
    assert names(run) == before


def test_a_long_horizon_is_printed_in_powers_of_two():
    assert inspect._shown(6) == [1, 2, 3, 4, 5, 6]
    assert inspect._shown(20) == [1, 2, 4, 8, 16, 20]


def test_export_measures_the_return_and_films_an_episode(run, tmp_path):
    target = tmp_path / "out"
    options = ("--seed=4", "--episodes=3", f"--to={target}")
    status, out, err = commands.call("export", str(run), *options)
    assert (status, err) == (0, "")
    printed = re.search(r"return (-\d+\.?\d*) over 3 episodes", out)
    card = (target / "README.md").read_text()
    value = re.search(r"\*\*(\S+) \+/- \S+\*\*", card)[1]
    assert float(value) == pytest.approx(float(printed[1]), rel=1e-4)
    has_film = film._ffmpeg() is not None
    expected = ["README.md", "config.json", "model.safetensors"]
    assert names(target) == expected + ["replay.mp4"] * has_film
    assert out.splitlines()[-1].startswith(f"{target}: ")
    # The other commands take the folder like a run.
    assert trained.load(target).seed == 4


def test_export_without_ffmpeg_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "_ffmpeg", lambda: None)
    monkeypatch.setattr("vagram_jax.cli.export._returns", lambda _: [1.0, 2.0])
    status, out, _ = commands.call("export", str(run), f"--to={tmp_path / 'out'}")
    assert status == 0
    reason = 'no film: mp4: needs ffmpeg; pip install "vagram_jax[video]"'
    assert out.splitlines()[-1] == f"{tmp_path / 'out'}: {reason}"
    assert "[video]" in (tmp_path / "out" / "README.md").read_text()


def refused(message, *args, status=2):
    """Checks that a command prints one line that matches, with this status."""
    actual, _, err = commands.call(*args)
    assert actual == status
    assert re.search(message, err), err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("inspect",), r"vagram inspect: the folder of one run is accepted"),
        (("inspect", "a", "b"), r"vagram inspect a b: the folder of one run"),
        (("inspect", "RUN", "--seed=5"), r"seed=5; the run has 3 to 4"),
        (("inspect", "RUN", "--episodes=0"), r"--episodes=0; 1 to 1000"),
        (("inspect", "RUN", "--horizon=0"), r"--horizon=0; 1 to 100"),
        (("inspect", "RUN", "--to=x"), r"--to=x: unknown flag"),
        (("export", "RUN"), r"--to=; a new or empty folder is accepted"),
        (("export", "RUN", "--to=RUN"), r"exists and isn't an empty folder"),
        (("export", "--to=x"), r"vagram export: the folder of one run is accepted"),
        (("export", "RUN", "--to=x", "--seed=9"), r"seed=9; the run has 3 to 4"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(
    run, tmp_path, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    refused(message, *(arg.replace("RUN", str(run)) for arg in args))
    assert names(tmp_path) == []


def test_what_is_missing_is_refused_in_one_line(run, tmp_path, monkeypatch):
    refused("no run; a run is a folder", "inspect", str(tmp_path), status=5)
    plain = policy_cases.create(tmp_path)
    for args in (("inspect",), ("export", f"--to={tmp_path / 'out'}")):
        refused("no undamaged checkpoint of seed 3", *args, str(plain), status=5)
    policy_cases.save(plain, policy_cases.drawn(11), 11)
    refused(r"no model \(loss=none, plain SAC\); inspect a run", "inspect", str(plain))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    refused(r"vagram_jax\[export\]", "export", str(run), f"--to={tmp_path / 'out'}")
