"""The command that films a policy, from end to end, and all that it refuses."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import jax
import numpy as np
import policy_cases
import pytest
from absl.testing import flagsaver
from PIL import Image, ImageSequence

from vagram_jax import envs
from vagram_jax.cli import flags, render
from vagram_jax.envs import base
from vagram_jax.run import policies
from vagram_jax.storage import files, results

ROOT = Path(render.__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """A run of two seeds, saved at steps 11 and 14."""
    folder = policy_cases.create(tmp_path)
    for step in (11, 14):
        policy_cases.save(folder, policy_cases.drawn(step, seed=step), step)
    return folder


def call(*args):
    """The command in this process; gives status, standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        flagsaver.flagsaver(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        flags.run(render.main, argv=["render", *args])
    return caught.value.code, out.getvalue(), err.getvalue()


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def shown(film):
    """The size of a GIF, and for how many milliseconds it runs.

    Frames that look the same are one in the file, which is shown for longer.
    """
    with Image.open(film) as image:
        frames = ImageSequence.Iterator(image)
        return image.size, sum(frame.info["duration"] for frame in frames)


def test_the_command_as_a_program_leaves_a_film_in_the_folder_of_the_run(run):
    done = subprocess.run(
        [sys.executable, "-m", "vagram_jax.cli.render", "--run=study/sac", "--seed=4"],
        capture_output=True,
        text=True,
        check=False,
        cwd=run.parents[1],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, episode, last = done.stdout.splitlines()
    assert first == "study/sac, seed 4, trained for 14 steps"
    assert re.fullmatch(r"return -\d+\.?\d* in 12 steps", episode)
    ((seed, name),) = results.pictures(run)
    assert last == f"study/sac/{name}: 20 frames a second"
    assert (seed, name.rpartition(".")[0]) == (4, "policy-seed4")


def test_the_film_and_the_return_are_of_the_episode_that_gymnasium_plays(run, tmp_path):
    film = tmp_path / "film.GIF"
    status, out, err = call(f"--run={run}", f"--output={film}", "--episode_seed=7")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "study/sac, seed 3, trained for 14 steps"
    # The first state and twelve more, 50 ms each.
    assert shown(film) == ((480, 360), 13 * 50)
    env = envs.from_config(policy_cases.ENV)
    start = env.reset(jax.random.split(jax.random.key(7), 1)[0])
    policy, theirs = policies.load_policy(run), gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    state = base.unwrapped(env, start)[1].pipeline_state
    theirs.state, total = np.array(state, np.float64), 0.0
    for _ in range(12):
        action = policy.act(theirs._get_obs())
        total += theirs.step(2 * np.asarray(action, np.float64))[1]
    said = re.fullmatch(r"return (\S+) in 12 steps", out.splitlines()[1])
    assert float(said[1]) == pytest.approx(total, rel=1e-4)


def test_episodes_are_played_one_after_the_other_at_the_size_and_pace_asked(run):
    film = run / "film.gif"
    wanted = ("--episodes=2", "--width=64", "--height=48", "--fps=10")
    status, out, err = call(f"--run={run}", f"--output={film}", *wanted)
    assert (status, err) == (0, "")
    returns = re.findall(r"^return (\S+) in 12 steps$", out, re.MULTILINE)
    assert len(set(returns)) == 2
    # Every second of thirteen poses, twice.
    assert shown(film) == ((64, 48), 2 * 7 * 100)


def test_a_diverged_seed_is_called_so(tmp_path):
    folder, arrays = policy_cases.create(tmp_path), policy_cases.drawn(14)
    arrays[".env_steps"][0], arrays[".diverged_at"][0] = 8, 11
    policy_cases.save(folder, arrays, 14)
    _, out, _ = call(f"--run={folder}", f"--output={tmp_path / 'a.gif'}")
    assert out.startswith("study/sac, seed 3, trained for 8 steps, diverged at 11\n")


def test_a_damaged_checkpoint_is_told_on_standard_error(run, tmp_path):
    newest = run / "checkpoints" / "000000014" / "seeds-3-4" / "arrays.npz"
    newest.write_bytes(newest.read_bytes()[:-9])
    status, out, err = call(f"--run={run}", f"--output={tmp_path / 'a.gif'}")
    assert status == 0
    assert err.count("\n") == 1
    assert err.startswith(f"{newest}: damaged")
    assert out.startswith("study/sac, seed 3, trained for 11 steps\n")


def refused(status, said, *args):
    """One line that matches, that status, and nothing on standard output."""
    found, out, err = call(*args)
    assert (found, out) == (status, "")
    assert re.search(said, err)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--run="], r"--run=; the folder of a run"),
        (["--seed=5"], r"seed=5; the run has 3 to 4"),
        (["--seed=x"], r"--seed=x"),
        (["--sed=3"], r"did you mean --seed\?"),
        (["--config.env=hopper"], r"takes no config"),
        (["--episodes=0"], r"--episodes=0; 1 to 1000"),
        (["--episodes=1001"], r"--episodes=1001; 1 to 1000"),
        (["--episode_seed=-1"], r"--episode_seed=-1; 0 to"),
        (["--fps=0"], r"--fps=0.0; 0.1 to 100.0"),
        (["--fps=nan"], r"--fps=nan; 0.1 to 100.0"),
        (["--width=12"], r"size=\(12, 360\); even numbers from 16 to 8192"),
        (["--height=361"], r"size=\(480, 361\); even numbers"),
        (["--output=film.avi"], r"film.avi; it must end in one of .mp4, .gif, .html"),
        (["--output=film"], r"film; it must end in one of"),
        (["--output=film.html"], r"env Pendulum: .*'html'; accepted: mp4, gif"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_status_2(run, monkeypatch, args, said):
    monkeypatch.chdir(run.parent)
    before = names(run.parent)
    refused(2, said, f"--run={run}", *args)
    assert names(run.parent) == before


def test_an_mp4_without_ffmpeg_is_refused_before_it_is_played(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    refused(2, r"vagram_jax\[video\]", f"--run={run}", f"--output={run / 'a.mp4'}")


def test_what_is_no_run_is_refused_with_status_5(run, tmp_path):
    for place, said in (
        (tmp_path / "nowhere", r"nowhere: no run; .*; check the path"),
        (run.parent, r"study: no run; .*; it is a study with sac"),
        (run / "config.json", r"config.json: is no folder"),
    ):
        refused(5, said, f"--run={place}")


def test_a_run_without_a_whole_checkpoint_is_refused_with_status_5(run, tmp_path):
    empty = policy_cases.create(tmp_path / "other")
    refused(5, "no undamaged checkpoint of seed 3; train the run", f"--run={empty}")
    for piece in run.glob("checkpoints/*/*/manifest.json"):
        piece.write_text("{}")
    status, out, err = call(f"--run={run}")
    assert (status, out) == (5, "")
    *damages, last = err.splitlines()
    assert len(damages) == 2
    assert all("manifest.json: damaged" in damage for damage in damages)
    assert "no undamaged checkpoint of seed 3" in last
    assert not results.pictures(run)


def test_a_damaged_record_is_refused_with_status_5(run):
    (run / "config.json").write_text("{")
    refused(5, r"config.json: no valid JSON", f"--run={run}")


def test_a_place_that_cannot_be_written_is_refused_with_status_5(run, monkeypatch):
    places = {run / "none" / "a.gif": "none: no such folder; make it first"}
    places[run / "config.json" / "a.gif"] = "config.json: is no folder"
    for place, said in places.items():
        refused(5, said, f"--run={run}", f"--output={place}")

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    # Permissions don't bind root, who may well run these tests.
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    refused(5, "Read-only file system", f"--run={run}")
