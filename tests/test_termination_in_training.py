"""Learned termination in imagined rollouts, in the training loop and in checkpoints."""

import functools

import jax
import jax.numpy as jnp
import mbpo_cases as cases
import numpy as np
import probe_envs
import pytest
from termination_cases import ACTION_DIM, CONFIG, OBS_DIM, below

from vagram_jax import dynamics, imagine, mbpo, schedules, termination
from vagram_jax.run import devices, states
from vagram_jax.storage import checkpoint

pytestmark = pytest.mark.usefixtures("key_reuse")


def test_imagine_ends_rollouts_where_the_classifier_says():
    # A model that adds -1 to each dimension; -2 and less has terminated.
    model = dynamics.DynamicsConfig(hidden=(), num_members=1, num_elites=1)
    sizes = {"obs_dim": OBS_DIM, "action_dim": ACTION_DIM}
    init = jax.jit(functools.partial(dynamics.init_dynamics, **sizes, config=model))
    params = init(jax.random.key(0))
    network = jax.tree.map(lambda x: np.full_like(x, -(x.ndim == 2)), params.network)
    run = functools.partial(
        imagine.imagine,
        act=lambda key, obs: obs[:, :ACTION_DIM],
        termination=termination.termination_fn(below(-1.5), config=CONFIG),
        horizon=5,
        config=imagine.ImagineConfig(horizon=schedules.constant(5)),
    )
    _, valid = jax.jit(run)(
        jax.random.key(0),
        params.replace(network=network),
        np.array([0]),
        np.float32([[0.0] * 3, [-1.0] * 3, [9.0] * 3]),
    )
    np.testing.assert_array_equal(valid.sum(axis=0), [2, 1, 5])


# The observation is the fraction of the five steps that has passed.
ENV = probe_envs.Salary(ends_after=5)
ENV.episode_length = 10
ENDS_ABOVE = 0.9
# A constant is added at each step, which a model without hidden layers learns at once.
LEARNED = cases.CONFIG.replace(
    loss="mse",
    dynamics=cases.CONFIG.dynamics.replace(hidden=()),
    fit=cases.CONFIG.fit.replace(learning_rate=0.05, max_epochs=50, patience=5),
    imagine=imagine.ImagineConfig(termination="learned", rollouts_per_step=20),
    termination=CONFIG.replace(hidden=(8,), steps_per_fit=300),
)


@jax.jit
def _start(key):
    state = mbpo.init(key, env=ENV, config=LEARNED)
    return mbpo.warm_up(state, env=ENV, config=LEARNED)


@jax.jit
def _epoch(state):
    return mbpo.epoch(state, env=ENV, config=LEARNED)


@functools.cache
def epochs_on(count):
    """The state after some epochs, and the last one's metrics."""
    if count == 0:
        return _start(jax.random.key(0)), {}
    return _epoch(cases.fresh(epochs_on(count - 1)[0]))


def test_epoch_learns_which_steps_end_an_episode():
    state, metrics = epochs_on(3)
    rows = cases.stored(state)
    np.testing.assert_array_equal(rows.terminated, rows.next_obs[:, 0] > ENDS_ABOVE)
    ends = termination.termination_fn(state.termination, config=LEARNED.termination)
    actual = jax.vmap(ends)(rows.obs, rows.action, rows.next_obs)
    np.testing.assert_array_equal(actual, rows.terminated)
    assert (
        metrics["model/termination_missed"]
        == metrics["model/termination_false_alarms"]
        == 0.0
    )
    assert bool(state.alive)


def test_warm_up_learns_nothing_and_the_first_epoch_does():
    steps = [int(epochs_on(n)[0].termination.opt_state[0].count) for n in range(3)]
    assert steps == [0, 300, 600]


def keys_given(monkeypatch, *functions):
    """Replaces functions, and returns the list of keys that they will be given."""
    seen = []

    def record(key, *_, **__):
        seen.append(key)
        return None, {}

    for name in functions:
        monkeypatch.setattr(f"vagram_jax.{name}", record)
    return seen


def assert_all_differ(keys, count):
    assert len(np.unique(cases.bits(jnp.stack(keys)), axis=0)) == len(keys) == count


# JAX's check for key reuse doesn't count `fold_in` as a use.
def test_init_gives_each_part_a_different_key(monkeypatch):
    parts = ("envs.episodes.reset", "fit.init", "termination.init", "sac.init")
    seen = keys_given(monkeypatch, *parts)
    state = mbpo.init(jax.random.key(0), env=ENV, config=LEARNED)
    assert_all_differ([*seen, state.key], 5)


def test_fit_model_gives_model_and_classifier_different_keys(monkeypatch):
    state, _ = epochs_on(0)
    seen = keys_given(monkeypatch, "fit.fit", "termination.fit")
    fitted, _ = mbpo.fit_model(state.replace(key=jax.random.key(0)), config=LEARNED)
    rest = [fitted.key, fitted.key_imagine, fitted.key_interact]
    assert_all_differ([*seen, *rest, jax.random.key(0)], 6)


def test_add_imagined_flags_terminations_as_the_classifier_does():
    state, metrics = epochs_on(3)
    rows = jax.tree.map(lambda x: x[: int(state.imagined.size)], state.imagined.data)
    ends = termination.termination_fn(state.termination, config=LEARNED.termination)
    expected = jax.vmap(ends)(rows.obs, rows.action, rows.next_obs)
    np.testing.assert_array_equal(rows.terminated, expected)
    assert 0.0 < metrics["model/terminated"] < 1.0


def test_epoch_counts_a_non_finite_classifier_as_divergence():
    state, _ = epochs_on(1)
    classifier = state.termination
    network = jax.tree.map(lambda x: x * jnp.nan, classifier.network)
    state = state.replace(termination=classifier.replace(network=network))
    actual, _ = _epoch(cases.fresh(state))
    assert not bool(actual.alive)


@pytest.mark.parametrize(
    "algorithm",
    [
        cases.CONFIG,
        LEARNED.replace(imagine=LEARNED.imagine.replace(termination="none")),
        LEARNED.replace(loss=mbpo.NO_MODEL, real_fraction=schedules.constant(1.0)),
    ],
    ids=["env", "none", "no model"],
)
def test_init_has_no_classifier_unless_one_is_learned(algorithm):
    make = functools.partial(mbpo.init, env=ENV, config=algorithm)
    assert jax.eval_shape(make, jax.random.key(0)).termination is None


def test_a_state_with_a_classifier_survives_its_checkpoint(tmp_path):
    # One lane, as a run has it.
    state = jax.tree.map(lambda x: x[None], cases.fresh(epochs_on(2)[0]))
    packed = states.pack(state)
    checkpoint.save(checkpoint.Piece(tmp_path, range(1), packed), 7)
    read = checkpoint.load(tmp_path, 7, range(1))
    shapes = jax.eval_shape(lambda x: x, state)
    back = states.unpack(read, shapes, devices.Layout())
    cases.assert_identical(back, state)
    name = ".termination.network['params']['Dense_0']['kernel']"
    np.testing.assert_array_equal(
        read[name], state.termination.network["params"]["Dense_0"]["kernel"]
    )
    # A run without a classifier has other arrays, which is an error.
    with pytest.raises(checkpoint.CheckpointError, match=r"\.termination\."):
        states.unpack(read, shapes.replace(termination=None), devices.Layout())
