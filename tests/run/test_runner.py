"""The host's side of a run: when things happen, and what is written and told.

How rows and lines look is in `test_progress`; stopping and going on, in others.
"""

import jax
import jax.numpy as jnp
import mbpo_cases as cases
import numpy as np
import probe_envs
import pytest
from tests.run.test_progress import STORY

from vagram_jax import config, training
from vagram_jax.envs import EnvError
from vagram_jax.run import devices, programs, progress, runner, session
from vagram_jax.storage import checkpoint, files

CONFIG = cases.CONFIG
RUN = runner.RunConfig(
    num_seeds=cases.NUM_SEEDS,
    total_steps=cases.WARMUP + 3 * cases.STEPS,
    eval_episodes=cases.EVAL_EPISODES,
)
STEPS = [cases.WARMUP + epoch * cases.STEPS for epoch in range(4)]


@pytest.fixture
def compiled_once(monkeypatch):
    """Lets all runs of these tests share what is compiled for the first."""

    def make(env, *, eval_episodes, matmul_precision, layout):
        assert (matmul_precision, layout) == ("highest", devices.Layout())
        assert (env, eval_episodes) == (cases.WALK, cases.EVAL_EPISODES)
        return cases.PROGRAMS

    monkeypatch.setattr(programs, "make", make)


def collect(run=RUN, algorithm=CONFIG):
    """The last states, and what was told after each epoch."""
    told = []
    for states, turn in runner.train(run, algorithm, cases.WALK):  # noqa: B007
        told.append(turn)
    return cases.bits(states), told


def diverging():
    """A config with which a part of the seeds diverges in the first epoch."""
    states, metrics = cases.epoch_seeds(cases.start_seeds())
    reward = np.abs(states.replay.data.reward).max(axis=1)
    bound = (reward + 2 * CONFIG.sac.initial_temperature) / (1 - CONFIG.sac.discount)
    ratio = np.sort(np.asarray(metrics["sac/q_max"] / bound))
    # Between the third and the fourth largest.
    return CONFIG.replace(divergence_slack=float(ratio[-4:-2].mean()))


def run_to_files(folder, algorithm=CONFIG, run=RUN, env_name="walk"):
    """The tables of metrics and of the model, and the lines."""
    folder.mkdir()
    lines = []
    session.train_to_files(
        run,
        [session.Job(folder, env_name, algorithm)],
        cases.WALK,
        keeping=session.Keeping(checkpoint_every=0),
        tell=lines.append,
    )
    tables = [files.read_rows(folder / name) for name in ("metrics.csv", "model.csv")]
    return *tables, lines


# --- train ----------------------------------------------------------------------------


@pytest.mark.usefixtures("compiled_once")
def test_train_yields_after_the_warm_up_and_every_epoch():
    _, told = collect()
    assert [turn.env_steps for turn in told] == STEPS
    assert told[0].metrics == {}
    assert all(turn.metrics for turn in told[1:])


@pytest.mark.parametrize(
    ("every", "evaluated"),
    [(1, STEPS), (2, [10, 20, 25]), (3, [10, 25]), (9, [10, 25])],
)
@pytest.mark.usefixtures("compiled_once")
def test_train_evaluates_every_so_many_epochs_and_at_the_end(every, evaluated):
    _, told = collect(RUN.replace(eval_every=every))
    found = [turn.env_steps for turn in told if turn.returns.size]
    assert found == evaluated
    assert [turn.env_steps for turn in told if turn.lengths.size] == evaluated


@pytest.mark.usefixtures("compiled_once")
def test_train_ends_with_the_same_bits_however_often_it_evaluates():
    always, told = collect()
    seldom, told_seldom = collect(RUN.replace(eval_every=9))
    cases.assert_identical(seldom, always)
    np.testing.assert_array_equal(told_seldom[-1].returns, told[-1].returns)


@pytest.mark.usefixtures("compiled_once")
def test_train_twice_ends_with_the_same_bits():
    first, told = collect()
    second, told_again = collect()
    cases.assert_identical(second, first)
    for one, other in zip(told, told_again, strict=True):
        cases.assert_identical(other[:-1], one[:-1])  # all but the time


@pytest.mark.usefixtures("compiled_once")
def test_train_evaluates_each_seed_and_time_with_keys_of_their_own():
    # The agent stands still, so only the keys of the evaluations differ.
    still = CONFIG.replace(
        sac=CONFIG.sac.replace(actor_learning_rate=1e-30, critic_learning_rate=1e-30)
    )
    _, told = collect(algorithm=still)
    returns = np.concatenate([turn.returns for turn in told])
    assert len(np.unique(returns)) == len(returns) == 4 * cases.NUM_SEEDS


@pytest.mark.usefixtures("compiled_once")
def test_train_tells_the_means_of_each_seeds_episodes():
    _, told = collect()
    played = cases.PROGRAMS.evaluate(cases.start_seeds(), cases.lanes(), np.uint32(0))
    returns, lengths = (np.asarray(x) for x in played)
    assert returns.shape == (cases.NUM_SEEDS, cases.EVAL_EPISODES)
    np.testing.assert_array_equal(told[0].returns, returns.mean(axis=1))
    np.testing.assert_array_equal(told[0].lengths, lengths.mean(axis=1))
    assert np.all((lengths >= 1) & (lengths <= cases.EPISODE_LENGTH))


@pytest.mark.usefixtures("compiled_once")
def test_train_gives_a_diverged_seed_no_return_from_then_on():
    _, told = collect(algorithm=diverging())
    diverged_at = told[-1].diverged_at
    assert np.sum(diverged_at == STEPS[1]) == 3
    for turn in told:
        dead = (diverged_at >= 0) & (diverged_at <= turn.env_steps)
        np.testing.assert_array_equal(np.isnan(turn.returns), dead)
        wanted = np.where(dead, diverged_at, -1)
        np.testing.assert_array_equal(turn.diverged_at, wanted)


@pytest.mark.usefixtures("compiled_once")
def test_train_tells_numbers_that_stay_as_they_are():
    # The states are given away at the next epoch, and memory is used again.
    before = []
    told = []
    for _, turn in runner.train(RUN, diverging(), cases.WALK):
        told.append(turn)
        before.append(cases.bits(turn))
    cases.assert_identical(told, before)
    assert np.all(told[0].diverged_at == -1)


def test_train_tells_of_each_seed_how_many_transitions_were_left_out(monkeypatch):
    broken = cases.with_row(cases.start_seeds().dropped, 3, lambda dropped: dropped + 5)
    before = cases.start_seeds().replace(dropped=broken)
    started = cases.PROGRAMS._replace(warm_up=lambda states, lanes: cases.fresh(before))
    monkeypatch.setattr(runner, "compiled", lambda *_: started)
    _, told = collect()
    for turn in told:
        np.testing.assert_array_equal(turn.dropped, 5 * np.eye(cases.NUM_SEEDS)[3])


@pytest.mark.usefixtures("compiled_once")
def test_train_goes_on_where_it_is_told_to_begin():
    whole, told = collect()
    lanes = programs.lanes(range(cases.NUM_SEEDS), [CONFIG] * cases.NUM_SEEDS)
    layout = devices.Layout()
    turns = runner.train_lanes(RUN, lanes, cases.PROGRAMS, layout=layout)
    for states, turn in turns:
        if turn.env_steps == STEPS[2]:
            arrays = checkpoint.pack(states)
            break
    turns = runner.train_lanes(
        RUN,
        lanes,
        cases.PROGRAMS,
        layout=layout,
        begin=runner.Begin(STEPS[2], arrays, seconds=1000.0),
    )
    (_, first), (states, second) = turns
    assert (first.env_steps, second.env_steps) == tuple(STEPS[2:])
    # What was told of the first step already isn't told once more.
    assert (first.metrics, first.returns.size, first.lengths.size) == ({}, 0, 0)
    assert 1000 <= first.seconds <= second.seconds < 2000
    cases.assert_identical(states, whole)
    cases.assert_identical(second[:-1], told[-1][:-1])


def test_seeds_of_are_numbered_from_the_first():
    run = runner.RunConfig(num_seeds=3, first_seed=2**31)
    assert list(runner.seeds_of(run)) == [2**31, 2**31 + 1, 2**31 + 2]


@pytest.mark.parametrize("total_steps", [1, 10, 12, 26])
def test_check_refuses_steps_that_are_no_whole_number_of_epochs(total_steps):
    run = RUN.replace(total_steps=total_steps)
    fitting = 25 if total_steps == 26 else 15
    with pytest.raises(config.ConfigError, match=f"={total_steps};.* as {fitting}$"):
        runner.check(run, CONFIG, cases.WALK)
    fits = run.replace(total_steps=fitting)
    assert runner.check(fits, CONFIG, cases.WALK) == (fits, CONFIG)


def test_check_refuses_an_environment_without_an_episode_length():
    with pytest.raises(EnvError, match="Counter: episode_length=None; a whole number"):
        runner.check(RUN, CONFIG, probe_envs.Counter())


# --- train_to_files -------------------------------------------------------------------


@pytest.mark.usefixtures("compiled_once")
def test_train_to_files_writes_a_row_per_seed_and_evaluation(tmp_path):
    rows, _, _ = run_to_files(tmp_path / "run", run=RUN.replace(eval_every=2))
    wanted = [(seed, step) for step in (10, 20, 25) for seed in range(cases.NUM_SEEDS)]
    assert [(row["seed"], row["env_steps"]) for row in rows] == wanted
    assert {(row["env"], row["loss"]) for row in rows} == {("walk", "vagram")}


@pytest.mark.usefixtures("compiled_once")
def test_train_to_files_writes_a_row_per_seed_and_fit(tmp_path):
    _, rows, _ = run_to_files(tmp_path / "run", run=RUN.replace(eval_every=2))
    wanted = [(seed, step) for step in STEPS[1:] for seed in range(cases.NUM_SEEDS)]
    assert [(row["seed"], row["env_steps"]) for row in rows] == wanted


@pytest.mark.usefixtures("compiled_once")
def test_train_to_files_writes_the_clock_after_every_epoch(tmp_path):
    run_to_files(tmp_path / "run", run=RUN.replace(eval_every=9))
    rows = files.read_rows(tmp_path / "run" / "timing.csv")
    assert [(row["seed"], row["env_steps"]) for row in rows] == [(0, s) for s in STEPS]
    seconds = [row["wall_time_s"] for row in rows]
    assert seconds == sorted(seconds)
    assert all(0 < value < 600 for value in seconds)


@pytest.mark.usefixtures("compiled_once")
def test_train_to_files_does_not_depend_on_names(tmp_path):
    metrics, model, lines = run_to_files(tmp_path / "run", env_name="walk")
    others = run_to_files(tmp_path / "other", env_name="other:Name")
    assert others[0] == [row | {"env": "other:Name"} for row in metrics]
    assert others[1] == [row | {"env": "other:Name"} for row in model]
    assert len(others[2]) == len(lines) == 4


@pytest.mark.usefixtures("compiled_once")
def test_train_to_files_twice_leaves_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        run_to_files(tmp_path / name)
    for table in ("metrics.csv", "model.csv"):
        one, two = ((tmp_path / name / table).read_bytes() for name in ("one", "two"))
        assert one == two


@pytest.mark.usefixtures("compiled_once")
def test_train_to_files_writes_which_seeds_diverged_and_when(tmp_path):
    _, told = collect(algorithm=diverging())
    rows, _, lines = run_to_files(tmp_path / "run", diverging())
    diverged_at = told[-1].diverged_at
    assert np.sum(diverged_at >= 0) >= 3
    found = {r["seed"]: r["diverged_at"] for r in rows if r["env_steps"] == STEPS[-1]}
    assert found == {i: at if at >= 0 else None for i, at in enumerate(diverged_at)}
    assert f", {np.sum(diverged_at >= 0)} diverged, " in lines[-1]


@pytest.mark.usefixtures("compiled_once")
def test_train_to_files_trains_no_more_when_all_seeds_have_diverged(tmp_path):
    algorithm = CONFIG.replace(divergence_slack=1e-9)
    rows, model, lines = run_to_files(tmp_path / "run", algorithm)
    # The rows go on, so that other runs have these steps in common with it.
    assert [row["env_steps"] for row in rows] == [
        step for step in STEPS for _ in range(cases.NUM_SEEDS)
    ]
    after = rows[cases.NUM_SEEDS :]
    assert {row["diverged_at"] for row in after} == {STEPS[1]}
    assert all(np.isnan(row["return"]) for row in after)
    assert {row["env_steps"] for row in model} == {STEPS[1]}
    assert len(lines) == len(STEPS)
    assert checkpoint.steps(tmp_path / "run")[-1] == STEPS[-1]


@pytest.mark.usefixtures("compiled_once")
def test_train_to_files_says_that_all_seeds_diverged_where_nothing_is_evaluated(
    tmp_path,
):
    # The run ends there: no later evaluation will say so.
    algorithm = CONFIG.replace(divergence_slack=1e-9)
    run = RUN.replace(eval_every=3)
    rows, _, _ = run_to_files(tmp_path / "run", algorithm, run)
    last = rows[-cases.NUM_SEEDS :]
    assert {row["diverged_at"] for row in last} == {STEPS[1]}


@pytest.mark.usefixtures("compiled_once")
def test_model_csv_has_all_that_a_fit_measures(tmp_path):
    _, rows, _ = run_to_files(tmp_path / "run", run=RUN.replace(eval_every=9))
    assert set(rows[0]) == {
        *("env", "loss", "seed", "env_steps"),
        *("horizon", "valid", "terminated", "epochs", "weightless"),
        *("train_loss_0", "train_loss_1", "holdout_loss_0", "holdout_loss_1"),
        *(f"{name}_{i}" for name in ("error_dim", "attention_dim") for i in range(3)),
    }


# --- What is written of what is told, without a program -------------------------------


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Writes the story of `test_progress`; gives the run's folder and its lines."""

    def write(algorithm=CONFIG):
        states = {"x": jnp.arange(2.0)}
        monkeypatch.setattr(runner, "compiled", lambda *_: None)
        monkeypatch.setattr(
            runner, "train_lanes", lambda *_, **__: ((states, p) for p in STORY)
        )
        lines = []
        session.train_to_files(
            runner.RunConfig(num_seeds=2, first_seed=7, total_steps=30),
            [session.Job(tmp_path, "walk", algorithm)],
            cases.WALK,
            keeping=session.Keeping(checkpoint_every=0),
            tell=lines.append,
        )
        return tmp_path, lines

    return write


def test_train_to_files_tells_where_a_run_stands(told):
    folder, lines = told()
    around = {"first": cases.WARMUP, "last": 30}
    evaluated = [turn for turn in STORY if turn.returns.size]
    assert lines == [progress.line(folder.name, turn, **around) for turn in evaluated]


def test_train_to_files_writes_the_rows_of_each_turn_with_an_evaluation(told, tmp_path):
    folder, _ = told()
    constant = {"env": "walk", "loss": "vagram"}
    for turn in STORY:
        if turn.returns.size:
            rows = progress.metric_rows(turn, [7, 8], constant)
            files.append_rows(tmp_path / "wanted.csv", rows)
    wanted = (tmp_path / "wanted.csv").read_text()
    assert (folder / "metrics.csv").read_text() == wanted


def test_train_to_files_writes_the_rows_of_each_turn_with_an_epoch(told, tmp_path):
    folder, _ = told()
    constant = {"env": "walk", "loss": "vagram"}
    for turn in STORY[1:]:
        rows = progress.model_rows(turn, [7, 8], constant)
        files.append_rows(tmp_path / "wanted.csv", rows)
    wanted = (tmp_path / "wanted.csv").read_text()
    assert (folder / "model.csv").read_text() == wanted


def test_timing_csv_has_the_clock_of_each_turn_at_the_first_seed(told):
    folder, _ = told()
    assert (folder / "timing.csv").read_text().splitlines() == [
        "seed,env_steps,wall_time_s",
        *("7,10,4.0", "7,15,9.96", "7,20,12.0", "7,25,15.0", "7,30,16.0"),
    ]


def test_model_csv_is_not_there_without_a_model(told):
    folder, _ = told(CONFIG.replace(loss=training.NO_MODEL))
    names = {path.name for path in folder.iterdir()}
    assert names == {"metrics.csv", "timing.csv", "checkpoints"}


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_programs_run_at_the_precision_that_is_asked_for(precision):
    run = RUN.replace(eval_episodes=1, matmul_precision=precision)
    made = runner.compiled(run, cases.WALK, devices.Layout())
    lanes = cases.lanes((0,))
    for _ in range(2):  # tracing again must not lose it
        states = jax.eval_shape(made.initialise, lanes)
        fitted, _ = jax.eval_shape(made.learn_model, states, lanes)
        for program, args in (
            (made.learn_model, (states, lanes)),
            (made.learn_policy, (states, fitted, lanes)),
        ):
            text = str(program.trace(*args).jaxpr)
            assert "dot_general" in text
            assert ("Precision.HIGHEST" in text) == (precision == "highest")
