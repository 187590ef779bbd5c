"""`vagram render`: its films, and what it refuses."""

import functools
import re
import sys

import commands
import gymnasium
import jax
import numpy as np
import policy_cases
import pytest
from PIL import Image, ImageSequence

from vagram_jax import envs
from vagram_jax.envs import base
from vagram_jax.run import trained
from vagram_jax.storage import files, results


@pytest.fixture
def run(tmp_path):
    """A run of two seeds, saved at steps 11 and 14."""
    folder = policy_cases.create(tmp_path)
    for step in (11, 14):
        policy_cases.save(folder, policy_cases.drawn(step, seed=step), step)
    return folder


call = functools.partial(commands.call, "render")


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def size_and_duration(film):
    """Size of a GIF, and its duration in ms; equal frames are merged in the file."""
    with Image.open(film) as image:
        frames = ImageSequence.Iterator(image)
        return image.size, sum(frame.info["duration"] for frame in frames)


def test_render_writes_a_film_to_the_folder_of_the_run(run, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    status, out, err = call("--run=study/sac", "--seed=4")
    assert (status, err) == (0, "")
    first, episode, last = out.splitlines()
    assert first == "study/sac, seed 4, trained for 14 steps"
    assert re.fullmatch(r"return -\d+\.?\d* in 12 steps", episode)
    ((seed, name),) = results.pictures(run)
    assert last == f"study/sac/{name}: 20 frames a second"
    assert (seed, name.rpartition(".")[0]) == (4, "policy-seed4")


def test_render_prints_the_return_of_the_same_episode_in_gymnasium(run, tmp_path):
    film = tmp_path / "film.GIF"
    status, out, err = call(f"--run={run}", f"--output={film}", "--episode_seed=7")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "study/sac, seed 3, trained for 14 steps"
    # The first state and twelve more, 50 ms each.
    assert size_and_duration(film) == ((480, 360), 13 * 50)
    env = envs.from_config(policy_cases.ENV)
    start = env.reset(jax.random.split(jax.random.key(7), 1)[0])
    policy, theirs = trained.load(run), gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    state = base.unwrapped(env, start)[1].pipeline_state
    theirs.state, total = np.array(state, np.float64), 0.0
    for _ in range(12):
        action = policy.act(theirs._get_obs())
        total += theirs.step(2 * np.asarray(action, np.float64))[1]
    printed = re.fullmatch(r"return (\S+) in 12 steps", out.splitlines()[1])
    assert float(printed[1]) == pytest.approx(total, rel=1e-4)


def test_render_films_several_episodes_at_the_given_size_and_frame_rate(run):
    film = run / "film.gif"
    options = ("--episodes=2", "--width=64", "--height=48", "--fps=10")
    status, out, err = call(f"--run={run}", f"--output={film}", *options)
    assert (status, err) == (0, "")
    returns = re.findall(r"^return (\S+) in 12 steps$", out, re.MULTILINE)
    assert len(set(returns)) == 2
    # Every second of thirteen poses, twice.
    assert size_and_duration(film) == ((64, 48), 2 * 7 * 100)


def test_render_reports_that_the_seed_diverged(tmp_path):
    folder, arrays = policy_cases.create(tmp_path), policy_cases.drawn(14)
    arrays[".env_steps"][0], arrays[".diverged_at"][0] = 8, 11
    policy_cases.save(folder, arrays, 14)
    _, out, _ = call(f"--run={folder}", f"--output={tmp_path / 'a.gif'}")
    assert out.startswith("study/sac, seed 3, trained for 8 steps, diverged at 11\n")


def test_render_warns_of_a_damaged_checkpoint(run, tmp_path):
    newest = run / "checkpoints" / "000000014" / "seeds-3-4" / "arrays.npz"
    newest.write_bytes(newest.read_bytes()[:-9])
    status, out, err = call(f"--run={run}", f"--output={tmp_path / 'a.gif'}")
    assert status == 0
    assert err.count("\n") == 1
    assert err.startswith(f"{newest}: damaged")
    assert out.startswith("study/sac, seed 3, trained for 11 steps\n")


def refused(status, message, *args):
    """Checks that the command prints one line that matches, with this status."""
    actual, out, err = call(*args)
    assert (actual, out) == (status, "")
    assert re.search(message, err)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
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
def test_a_wrong_flag_is_refused_with_status_2(run, monkeypatch, args, message):
    monkeypatch.chdir(run.parent)
    before = names(run.parent)
    refused(2, message, f"--run={run}", *args)
    assert names(run.parent) == before


def test_an_mp4_without_ffmpeg_is_refused_before_playing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    refused(2, r"vagram_jax\[video\]", f"--run={run}", f"--output={run / 'a.mp4'}")


def test_a_folder_without_a_run_is_refused_with_status_5(run, tmp_path):
    for folder, message in (
        (tmp_path / "nowhere", r"nowhere: no run; .*; check the path"),
        (run.parent, r"study: no run; .*; it is a study with sac"),
        (run / "config.json", r"config.json: is not a folder"),
    ):
        refused(5, message, f"--run={folder}")


def test_a_run_without_an_undamaged_checkpoint_is_refused_with_status_5(run, tmp_path):
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


def test_an_output_that_cannot_be_written_is_refused_with_status_5(run, monkeypatch):
    messages = {
        run / "none" / "a.gif": "none: no such folder; make it first",
        run / "config.json" / "a.gif": "config.json: is not a folder",
    }
    for output, message in messages.items():
        refused(5, message, f"--run={run}", f"--output={output}")

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    # Root, who may run these tests, can write everywhere.
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    refused(5, "Read-only file system", f"--run={run}")
