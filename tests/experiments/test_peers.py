"""The suite peers: what is trained, what is kept, and what the table says of it."""

import json
import math

import jax
import numpy as np
import pytest

from experiments import peers, peers_training
from experiments.peers_training import TASKS, Clock, Recorder
from vagram_jax.config import ConfigError

TASK = TASKS["pendulum"]._replace(steps=400, eval_every=100, target=10.0)


def cell(returns, together=(0,), seconds_per_step=0.1, compile_seconds=5.0):
    curve = [
        {
            "env_steps": 100 * (i + 1),
            "return": value,
            "seconds": compile_seconds + seconds_per_step * 100 * (i + 1),
            "compile_seconds": compile_seconds,
        }
        for i, value in enumerate(returns)
    ]
    return {"trained_together": list(together), "settings": {}, "curve": curve}


# --- the table ------------------------------------------------------------------------


def test_seeds_one_after_the_other_have_times_of_their_own():
    reached = peers.until(10.0, {0: cell([0, 10, 20]), 1: cell([0, 0, 11], (1,))})
    assert reached.seeds == reached.reached == 2
    assert reached.env_steps == 250.0
    # 15 + 10 s at 200 steps and 30 s + 5 s at 300, with 5 s of compiling each.
    assert reached.seconds == (25.0 + 35.0) / 2
    assert reached.without_compiling == (20.0 + 30.0) / 2
    assert reached.all_seeds == 25.0 + 35.0


def test_seeds_that_train_together_share_the_time_of_their_program():
    group = (0, 1)
    reached = peers.until(10.0, {0: cell([10], group), 1: cell([0, 10], group)})
    assert reached.seconds == (15.0 / 2 + 25.0 / 2) / 2
    assert reached.all_seeds == 25.0


@pytest.mark.parametrize("never", [[0, 0], [None, None], []])
def test_a_seed_that_never_has_the_return_makes_the_total_infinite(never):
    cells = {0: cell([10]), 1: cell([10], (1,)), 2: cell(never, (2,))}
    reached = peers.until(10.0, cells)
    assert (reached.reached, reached.env_steps) == (2, 100.0)
    assert reached.all_seeds == math.inf
    text = peers.table(TASK, {"vagram": peers.until(10.0, {0: cells[0]}), "x": reached})
    assert "2/3" in text and text.rstrip().endswith("1.00")
    # Relative to a method that never has the return, there is no time.
    alone = {"vagram": peers.until(10.0, {2: cells[2]}), "x": reached}
    assert peers.table(TASK, alone).splitlines()[-1].endswith(" -")


def test_a_curve_holds_the_return_until_the_next_evaluation():
    cells = {0: cell([1, 5]), 1: cell([3, 2], (1,), seconds_per_step=0.15)}
    steps, bands = peers.curve(cells, "env_steps")
    np.testing.assert_array_equal(steps, [100, 200])
    np.testing.assert_array_equal(bands, [[2, 1, 3], [3.5, 2, 5]])
    # Evaluations after 15 and 25 s, and after 20 and 35 s.
    seconds, bands = peers.curve(cells, "seconds")
    np.testing.assert_array_equal(seconds, [20, 25])
    np.testing.assert_array_equal(bands, [[2, 1, 3], [4, 3, 5]])


# --- the folder -----------------------------------------------------------------------


@pytest.fixture
def trainings(monkeypatch, tmp_path):
    """Trainings that take no time, and a folder with the speed of the updates."""
    asked = []

    def train(method, task, seeds, minutes):
        if method == "sbx_crossq" and "sbx_crossq" not in str(asked):
            asked.append("sbx_crossq")
            raise KeyboardInterrupt
        asked.append((method, tuple(seeds)))
        return {seed: cell([0.0, 12.0], seeds) for seed in seeds}

    monkeypatch.setattr(peers_training, "train", train)
    monkeypatch.setattr(peers, "_machine", lambda: {"device": "test"})
    (tmp_path / "updates.json").write_text('{"SAC update, SBX, ms": 7.0}')
    return asked


def measure(folder, methods=("vagram", "sbx_sac"), seeds=2, minutes=1.0):
    options = {"seeds": seeds, "minutes": minutes}
    return peers.measure(folder, [TASK], methods, **options)


def test_a_comparison_trains_only_what_its_folder_lacks(trainings, tmp_path):
    measure(tmp_path)
    assert trainings == [("vagram", (0, 1)), ("sbx_sac", (0,)), ("sbx_sac", (1,))]
    trainings.clear()
    measure(tmp_path, seeds=4)
    assert trainings == [("vagram", (2, 3)), ("sbx_sac", (2,)), ("sbx_sac", (3,))]


def test_an_interrupted_comparison_goes_on(trainings, tmp_path):
    methods = ("vagram", "sbx_crossq")
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, methods, seeds=1)
    figures = measure(tmp_path, methods, seeds=1)
    assert trainings == [("vagram", (0,)), "sbx_crossq", ("sbx_crossq", (0,))]
    assert figures["SAC update, SBX, ms"] == 7.0
    assert figures["pendulum, sbx_crossq, environment steps"] == 200.0


def test_a_comparison_writes_its_figures_and_a_picture(trainings, tmp_path):
    measure(tmp_path)
    written = json.loads((tmp_path / "peers.json").read_text())
    assert written["reached"]["pendulum"]["vagram"]["reached"] == 2
    assert written["tasks"]["pendulum"]["target"] == 10.0
    assert (tmp_path / "peers.png").read_bytes()[1:4] == b"PNG"


def test_results_of_other_settings_are_not_mixed(trainings, tmp_path):
    measure(tmp_path, seeds=1)
    with pytest.raises(ConfigError, match=r"vagram-0.json: trained with minutes=1"):
        measure(tmp_path, seeds=1, minutes=2.0)


@pytest.mark.parametrize(
    "text", ["walker", "pendulum:x", "pendulum:1:y", "hopper:1:2:3"]
)
def test_a_task_that_is_not_known_or_not_a_number_is_refused(monkeypatch, text):
    monkeypatch.setattr(peers.importlib, "import_module", lambda name: None)
    with pytest.raises(ConfigError, match=f"--tasks={text}"):
        peers.check([text], [])


def test_a_task_has_the_steps_and_the_return_that_are_asked_for(monkeypatch):
    monkeypatch.setattr(peers.importlib, "import_module", lambda name: None)
    (task,) = peers.check(["hopper:2000:300"], ["vagram"])
    assert (task.steps, task.target, task.gymnasium) == (2000, 300.0, "Hopper-v5")


def test_a_method_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="--methods=ppo; accepted: vagram, mle, sac"):
        peers.check([], ["ppo"])


def test_a_missing_library_names_the_extra(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(peers.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"sbx'; pip install .*\[peers,mujoco\]"):
        peers.check([], [])


# --- the clock ------------------------------------------------------------------------


@pytest.fixture
def now(monkeypatch):
    """A clock that only the test moves."""
    seconds = [100.0]
    monkeypatch.setattr(peers_training.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_clock_stands_still_in_a_pause(now):
    clock = Clock()
    now[0] += 2.0
    with clock.paused():
        now[0] += 50.0
        assert clock.seconds == 2.0
    now[0] += 3.0
    assert clock.seconds == 5.0


def test_compile_seconds_count_a_trace_within_another_once(now):
    clock, trace = Clock(), "/jax/core/compile/jaxpr_trace_duration"
    now[0] = 103.0
    clock._listen(trace, 1.0)  # 102 to 103
    now[0] = 104.0
    clock._listen(trace, 3.0)  # 101 to 104
    clock._listen("/jax/other", 9.0)
    with clock.paused():
        now[0] = 110.0
        clock._listen(trace, 5.0)
    assert clock.compile_seconds == 3.0


def test_a_clock_hears_of_programs_that_jax_compiles():
    clock = Clock()
    jax.jit(lambda x: x * 3.0 + 1.0)(np.float32(2.0))
    assert 0.0 < clock.compile_seconds <= clock.seconds


def test_a_recorder_evaluates_outside_the_time_of_training(now):
    def mean_return(index, act):
        now[0] += 30.0
        return act + index

    recorder = Recorder([3, 4], TASK, mean_return, max_seconds=5.0)
    for env_steps in (50, 100, 150, 230):
        now[0] += 1.0
        assert recorder.goes_on(env_steps, lambda: [0.5, None])
    now[0] += 1.0
    assert not recorder.goes_on(260, lambda: [])
    rows = [(row["env_steps"], row["return"]) for row in recorder.curves[3]]
    assert rows == [(100, 1.5), (230, 2.5)]
    assert [row["seconds"] for row in recorder.curves[4]] == [2.0, 4.0]
    assert recorder.curves[4][0]["return"] is None
