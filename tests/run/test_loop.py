"""The host loop: when it trains and evaluates, and what it yields."""

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest
import session_cases as cases
from session_cases import CONFIG, LAST, RUN, SEEDS, STEPS, programs_once

from vagram_jax import config
from vagram_jax.envs import EnvError
from vagram_jax.run import devices, failures, loop, memory, states, vectorized

__all__ = ["programs_once"]
pytestmark = pytest.mark.usefixtures("programs_once")


def train(run_config=RUN, algorithm=CONFIG):
    """The last states and the progress of each iteration."""
    iterations = []
    for state, progress in loop.train(run_config, algorithm, cases.Line()):
        arrays = states.pack(state)
        copies = {name: np.array(x) for name, x in progress.metrics.items()}
        iterations.append((progress, progress._replace(metrics=copies)))
    for progress, copied in iterations:
        # States are donated to the next epoch; progress must not share their memory.
        assert_equal(progress, copied)
    return arrays, [progress for progress, _ in iterations]


def assert_equal(progress, expected):
    """All but time and memory is equal."""
    measured = dict.fromkeys(("seconds", "seconds_per_step", "memory"))
    one, other = (each._asdict() | measured for each in (progress, expected))
    np.testing.assert_equal(one, other)


@pytest.fixture(scope="module")
def trained(programs_once):
    """The last states and the progress of a run that evaluates after every epoch."""
    return train()


def lanes():
    return vectorized.stack_lanes(range(SEEDS), [CONFIG] * SEEDS)


def put(lanes):
    return devices.put(lanes, cases.LAYOUT, SEEDS)


# Training.


def test_train_yields_after_the_warm_up_and_every_epoch(trained):
    _, iterations = trained
    assert [progress.env_steps for progress in iterations] == STEPS
    assert iterations[0].metrics == {}
    for progress in iterations[1:]:
        shapes = {name: x.shape[1:] for name, x in progress.metrics.items()}
        assert shapes == progress.metric_shapes


@pytest.mark.parametrize(("every", "evaluated"), [(2, [8, 14, 20]), (3, [8, 17, 20])])
def test_train_evaluates_every_so_many_epochs_and_at_the_end(every, evaluated):
    _, iterations = train(RUN.replace(eval_every=every))
    for sizes in ("returns", "lengths"):
        steps = [p.env_steps for p in iterations if getattr(p, sizes).size]
        assert steps == evaluated


def test_train_ends_with_the_same_bits_however_often_it_evaluates(trained):
    always, iterations = trained
    seldom, few = train(RUN.replace(eval_every=9))
    cases.assert_same_states(seldom, always)
    np.testing.assert_array_equal(few[-1].returns, iterations[-1].returns)


def test_train_twice_has_the_same_bits(trained):
    again, iterations = train()
    cases.assert_same_states(again, trained[0])
    for progress, expected in zip(iterations, trained[1], strict=True):
        assert_equal(progress, expected)


def test_each_seed_and_each_evaluation_draws_other_episodes():
    # The agent doesn't change, so only the keys of the evaluations differ.
    still = CONFIG.replace(
        sac=CONFIG.sac.replace(actor_learning_rate=1e-30, critic_learning_rate=1e-30)
    )
    _, iterations = train(algorithm=still)
    returns = np.concatenate([progress.returns for progress in iterations])
    assert len(np.unique(returns)) == len(returns) == len(STEPS) * SEEDS


def test_progress_has_the_means_of_the_episodes_of_each_seed(trained):
    programs, own = cases.programs(), put(lanes())
    played = programs.evaluate(vectorized.start(programs, own), own, np.uint32(0))
    returns, lengths = (np.asarray(x) for x in played[:2])
    assert returns.shape == (SEEDS, RUN.eval_episodes)
    first = trained[1][0]
    np.testing.assert_array_equal(first.returns, returns.mean(axis=1))
    np.testing.assert_array_equal(first.lengths, lengths.mean(axis=1))
    assert np.all(lengths == cases.Line.episode_length)


def test_a_diverged_seed_has_no_return_from_then_on():
    # A slack between the ratios of value to bound that both seeds reach in the first
    # epoch, so that one of them diverges.
    programs, own = cases.programs(), put(lanes())
    state, metrics = vectorized.epoch(programs, vectorized.start(programs, own), own)
    reward = np.abs(np.asarray(state.replay.data.reward)).max(axis=1)
    bound = (reward + CONFIG.sac.initial_temperature) / (1 - CONFIG.sac.discount)
    ratio = np.asarray(metrics["sac/q_max"]) / bound
    strict = CONFIG.replace(divergence_slack=float(ratio.mean()))
    _, iterations = train(algorithm=strict)
    assert iterations[0].diverged_at.tolist() == [-1, -1]
    assert iterations[1].diverged_at.tolist() == [
        STEPS[1] if each == ratio.max() else -1 for each in ratio
    ]
    for progress in iterations:
        np.testing.assert_array_equal(
            np.isnan(progress.returns), progress.diverged_at >= 0
        )


def test_the_speed_is_known_after_the_second_epoch(trained):
    speeds = [progress.seconds_per_step for progress in trained[1]]
    assert speeds[:2] == [None, None]  # compiling takes most of the first epoch
    assert all(speed > 0 for speed in speeds[2:])


def test_an_environment_that_is_never_finite_is_refused(monkeypatch):
    programs = cases.programs()

    def warm_up(*args):
        state = programs.warm_up(*args)
        return state.replace(
            replay=state.replay.replace(size=jnp.zeros_like(state.replay.size))
        )

    changed = programs._replace(warm_up=warm_up)
    monkeypatch.setattr(vectorized, "make_programs", lambda *_, **__: changed)
    with pytest.raises(failures.RunError, match="no finite transition in 8") as error:
        train()
    assert error.value.status == 3


def test_progress_counts_the_transitions_of_each_seed_that_were_dropped(monkeypatch):
    programs = cases.programs()

    def warm_up(*args):
        state = programs.warm_up(*args)
        return state.replace(dropped=state.dropped.at[1].add(5))

    changed = programs._replace(warm_up=warm_up)
    monkeypatch.setattr(vectorized, "make_programs", lambda *_, **__: changed)
    _, iterations = train()
    for progress in iterations:
        np.testing.assert_array_equal(progress.dropped, [0, 5])


def test_train_lanes_resumes_from_a_checkpoint_without_evaluating_it_again(trained):
    options = {"layout": cases.LAYOUT}
    for state, progress in loop.train_lanes(RUN, lanes(), cases.programs(), **options):
        if progress.env_steps == STEPS[-2]:
            arrays = states.pack(state)
    restored = loop.Restored(STEPS[-2], arrays, seconds=1000.0)
    (_, first), (state, second) = loop.train_lanes(
        RUN, lanes(), cases.programs(), restored=restored, **options
    )
    assert [first.env_steps, second.env_steps] == STEPS[-2:]
    assert (first.metrics, first.returns.size, first.lengths.size) == ({}, 0, 0)
    assert 1000 <= first.seconds <= second.seconds < 2000
    cases.assert_same_states(states.pack(state), trained[0])
    assert_equal(second, trained[1][-1])


def test_the_first_progress_is_announced_before_an_epoch_is_traced():
    programs, events = cases.programs(), []

    def fit_model(*args):
        events.append("traced")
        return programs.fit_model(*args)

    fit_model.lower = programs.fit_model.lower
    changed = programs._replace(fit_model=fit_model)
    options = {
        "layout": cases.LAYOUT,
        "announce": lambda *_: events.append("announced"),
    }
    next(loop.train_lanes(RUN, lanes(), changed, **options))
    assert events == ["announced", "traced"]


def test_a_metric_that_is_no_scalar_or_vector_is_refused():
    matrix = jax.ShapeDtypeStruct((SEEDS, 2, 3), "float32")
    with pytest.raises(ValueError, match=r"metric model/x: shape \(2, 3\) in one lane"):
        memory._shapes_of_one_lane({"model/x": matrix})


# Configs, lanes and programs.


def test_seeds_of_are_consecutive():
    run_config = loop.RunConfig(num_seeds=3, first_seed=2**31)
    assert list(loop.seeds_of(run_config)) == [2**31, 2**31 + 1, 2**31 + 2]


@pytest.mark.parametrize(
    ("total_steps", "fitting"), [(1, 11), (8, 11), (9, 11), (LAST + 1, LAST)]
)
def test_check_refuses_steps_that_are_no_whole_number_of_epochs(total_steps, fitting):
    run_config = RUN.replace(total_steps=total_steps)
    with pytest.raises(config.ConfigError, match=f"={total_steps};.* as {fitting}$"):
        loop.check(run_config, CONFIG, cases.Line())
    fits = RUN.replace(total_steps=fitting)
    assert loop.check(fits, CONFIG, cases.Line()) == CONFIG


def test_check_refuses_an_environment_without_an_episode_length():
    with pytest.raises(EnvError, match="Counter: episode_length=None; a whole number"):
        loop.check(RUN, CONFIG, probe_envs.Counter())


def test_check_size_refuses_what_cannot_fit_before_anything_is_compiled():
    huge = CONFIG.replace(replay_capacity=10**12)
    with pytest.raises(config.ConfigError, match=r"replay_capacity=10{12}; it needs"):
        memory.check_states(huge, cases.Line(), num_lanes=1, layout=cases.LAYOUT)
    with pytest.raises(devices.DeviceError, match=r"seeds fit; set --seed_chunk=\d+"):
        memory.check_states(CONFIG, cases.Line(), num_lanes=10**9, layout=cases.LAYOUT)
    memory.check_states(CONFIG, cases.Line(), num_lanes=SEEDS, layout=cases.LAYOUT)
