"""The host's side of a run: when things happen, and what is written and told."""

import jax
import mbpo_cases as cases
import numpy as np
import probe_envs
import pytest

from vagram_jax import config, files, mbpo, runner
from vagram_jax.envs import EnvError

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

    def programs(env, *, eval_episodes, matmul_precision):
        assert matmul_precision == "highest"
        assert (env, eval_episodes) == (cases.WALK, cases.EVAL_EPISODES)
        return cases.PROGRAMS

    monkeypatch.setattr(runner, "programs", programs)


def collect(run=RUN, algorithm=CONFIG):
    """The last states, and what was told after each epoch."""
    told = []
    for states, progress in runner.train(run, algorithm, cases.WALK):  # noqa: B007
        told.append(progress)
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
    """Both tables without the time, and the lines."""
    folder.mkdir()
    lines = []
    runner.train_to_files(
        run, algorithm, cases.WALK, folder=folder, env_name=env_name, tell=lines.append
    )
    tables = []
    for name in ("metrics.csv", "model.csv"):
        rows = files.read_rows(folder / name)
        tables.append(
            [{k: v for k, v in r.items() if k != "wall_time_s"} for r in rows]
        )
    return *tables, lines


# --- train ----------------------------------------------------------------------------


@pytest.mark.usefixtures("compiled_once")
def test_train_yields_after_the_warm_up_and_every_epoch():
    _, told = collect()
    assert [progress.env_steps for progress in told] == STEPS
    assert told[0].metrics == {}
    assert all(progress.metrics for progress in told[1:])


@pytest.mark.parametrize(
    ("every", "evaluated"),
    [(1, STEPS), (2, [10, 20, 25]), (3, [10, 25]), (9, [10, 25])],
)
@pytest.mark.usefixtures("compiled_once")
def test_train_evaluates_every_so_many_epochs_and_at_the_end(every, evaluated):
    _, told = collect(RUN.replace(eval_every=every))
    found = [progress.env_steps for progress in told if progress.returns.size]
    assert found == evaluated
    assert [p.env_steps for p in told if p.lengths.size] == evaluated


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
    returns = np.concatenate([progress.returns for progress in told])
    assert len(np.unique(returns)) == len(returns) == 4 * cases.NUM_SEEDS


@pytest.mark.usefixtures("compiled_once")
def test_train_tells_the_means_of_each_seeds_episodes():
    _, told = collect()
    played = cases.PROGRAMS.evaluate(
        cases.start_seeds(), runner.seeds_of(RUN), np.uint32(0), CONFIG
    )
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
    for progress in told:
        dead = (diverged_at >= 0) & (diverged_at <= progress.env_steps)
        np.testing.assert_array_equal(np.isnan(progress.returns), dead)
        wanted = np.where(dead, diverged_at, -1)
        np.testing.assert_array_equal(progress.diverged_at, wanted)


@pytest.mark.usefixtures("compiled_once")
def test_train_tells_numbers_that_stay_as_they_are():
    # The states are given away at the next epoch, and memory is used again.
    before = []
    told = []
    for _, progress in runner.train(RUN, diverging(), cases.WALK):
        told.append(progress)
        before.append(cases.bits(progress))
    cases.assert_identical(told, before)
    assert np.all(told[0].diverged_at == -1)


def test_seeds_of_are_numbered_from_the_first():
    run = runner.RunConfig(num_seeds=3, first_seed=2**31)
    np.testing.assert_array_equal(runner.seeds_of(run), 2**31 + np.arange(3))


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
def test_train_to_files_does_not_depend_on_names(tmp_path):
    metrics, model, lines = run_to_files(tmp_path / "run", env_name="walk")
    others = run_to_files(tmp_path / "other", env_name="other:Name")
    assert others[0] == [row | {"env": "other:Name"} for row in metrics]
    assert others[1] == [row | {"env": "other:Name"} for row in model]
    assert len(others[2]) == len(lines) == 4


@pytest.mark.usefixtures("compiled_once")
def test_train_to_files_returns_the_seeds_that_diverged(tmp_path):
    _, told = collect(algorithm=diverging())
    found = runner.train_to_files(
        RUN,
        diverging(),
        cases.WALK,
        folder=tmp_path,
        env_name="walk",
        tell=lambda line: None,
    )
    diverged_at = told[-1].diverged_at
    assert len(found) >= 3
    assert found == {i: int(at) for i, at in enumerate(diverged_at) if at >= 0}


# --- What is written of what is told, without a program -------------------------------


def progress(env_steps, returns, diverged_at, metrics=None, seconds=4.0):
    returns = np.float32(returns)
    return runner.Progress(
        env_steps=env_steps,
        returns=returns,
        lengths=np.full(returns.shape, 3.5),
        metrics=metrics or {},
        diverged_at=np.int32(diverged_at),
        seconds=seconds,
    )


def numbers(epoch):
    """Metrics of two seeds, each number another."""
    names = ["actor_loss", "critic_loss", "entropy", "q_max", "q_mean", "temperature"]
    agent = {
        f"sac/{name}": np.float32([epoch + i / 8, 100 + epoch + i / 8])
        for i, name in enumerate(names)
    }
    return agent | {
        "model/epochs": np.int32([epoch, epoch + 1]),
        "model/train_loss": np.float32([[1, 2, 3], [4, 5, 6]]) + epoch,
        "imagine/valid": np.float32([0.5, 0.25]),
    }


STORY = [
    progress(10, [-8.0, -6.0], [-1, -1], seconds=4.0),
    progress(15, [-4.4, -3.6], [-1, -1], numbers(1), seconds=9.96),
    progress(20, [], [-1, 20], numbers(2), seconds=12.0),
    progress(25, [-2.0, np.nan], [-1, 20], numbers(3), seconds=15.0),
    progress(30, [np.nan, np.nan], [30, 20], numbers(4), seconds=16.0),
]


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Writes `STORY`; gives the run's folder, its lines and what was returned."""

    def write(algorithm=CONFIG):
        monkeypatch.setattr(runner, "train", lambda *_: ((None, p) for p in STORY))
        lines = []
        diverged = runner.train_to_files(
            runner.RunConfig(num_seeds=2, first_seed=7, total_steps=30),
            algorithm,
            cases.WALK,
            folder=tmp_path,
            env_name="walk",
            tell=lines.append,
        )
        return tmp_path, lines, diverged

    return write


def test_train_to_files_tells_where_a_run_stands(told):
    folder, lines, _ = told()
    name = folder.name
    assert lines == [
        f"{name}: step 10 of 30, return -7 (-8 to -6), 4 s",
        f"{name}: step 15 of 30, return -4 (-4 to -4), 10 s, 30 s left",
        f"{name}: step 25 of 30, return -2 (-2 to -2), 1 diverged, 15 s, 5 s left",
        f"{name}: step 30 of 30, 2 diverged, 16 s, 0 s left",
    ]


def test_train_to_files_numbers_seeds_from_the_first(told):
    _, _, diverged = told()
    assert diverged == {7: 30, 8: 20}


def test_metrics_csv_is_written_line_by_line(told):
    folder, *_ = told()
    found = (folder / "metrics.csv").read_text().splitlines()
    assert found[0] == (
        "env,loss,seed,env_steps,wall_time_s,return,length,diverged_at,"
        "sac/actor_loss,sac/critic_loss,sac/entropy,sac/q_max,sac/q_mean,"
        "sac/temperature"
    )
    agent = "{0}.0,{0}.125,{0}.25,{0}.375,{0}.5,{0}.625"
    assert found[1:] == [
        "walk,vagram,7,10,4.0,-8.0,3.5,,,,,,,",
        "walk,vagram,8,10,4.0,-6.0,3.5,,,,,,,",
        f"walk,vagram,7,15,9.96,{float(np.float32(-4.4))},3.5,,{agent.format(1)}",
        f"walk,vagram,8,15,9.96,{float(np.float32(-3.6))},3.5,,{agent.format(101)}",
        f"walk,vagram,7,25,15.0,-2.0,3.5,,{agent.format(3)}",
        f"walk,vagram,8,25,15.0,nan,3.5,20,{agent.format(103)}",
        f"walk,vagram,7,30,16.0,nan,3.5,30,{agent.format(4)}",
        f"walk,vagram,8,30,16.0,nan,3.5,20,{agent.format(104)}",
    ]


def test_model_csv_gives_each_entry_of_a_vector_a_numbered_column(told):
    folder, *_ = told()
    found = (folder / "model.csv").read_text().splitlines()
    assert found[:5] == [
        "env,loss,seed,env_steps,epochs,train_loss_0,train_loss_1,train_loss_2,valid",
        "walk,vagram,7,15,1,2.0,3.0,4.0,0.5",
        "walk,vagram,8,15,2,5.0,6.0,7.0,0.25",
        "walk,vagram,7,20,2,3.0,4.0,5.0,0.5",
        "walk,vagram,8,20,3,6.0,7.0,8.0,0.25",
    ]
    assert len(found) == 9


def test_model_csv_is_not_there_without_a_model(told):
    folder, *_ = told(CONFIG.replace(loss=mbpo.NO_MODEL))
    assert [path.name for path in folder.iterdir()] == ["metrics.csv"]


@pytest.mark.usefixtures("compiled_once")
def test_model_csv_has_all_that_a_fit_measures(tmp_path):
    _, rows, _ = run_to_files(tmp_path / "run", run=RUN.replace(eval_every=9))
    assert set(rows[0]) == {
        *("env", "loss", "seed", "env_steps"),
        *("horizon", "valid", "terminated", "epochs"),
        *("train_loss_0", "train_loss_1", "holdout_loss_0", "holdout_loss_1"),
        *(f"{name}_{i}" for name in ("error_dim", "attention_dim") for i in range(3)),
    }


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_programs_run_at_the_precision_that_is_asked_for(precision):
    programs = runner.programs(cases.WALK, eval_episodes=1, matmul_precision=precision)
    seeds = np.zeros(1, np.uint32)
    for _ in range(2):  # tracing again must not lose it
        states = jax.eval_shape(programs.start, seeds, CONFIG)
        text = str(programs.epoch.trace(states, CONFIG).jaxpr)
        assert "dot_general" in text
        assert ("Precision.HIGHEST" in text) == (precision == "highest")
