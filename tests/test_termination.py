"""Learned termination: what it learns, how sure it is, and that it ends rollouts.

All tests share a buffer's shape, and most of them one config, so that few programs are
compiled, all of them with JAX looking for keys that are used twice. Rows that were
never written are NaN and flagged, so that using one shows.
"""

import functools

import jax
import jax.numpy as jnp
import mbpo_cases as cases
import numpy as np
import oracles
import probe_envs
import pytest
from scipy import special

from vagram_jax import config, dynamics, imagine, mbpo, replay, schedules, termination
from vagram_jax.run import devices, states
from vagram_jax.storage import checkpoint
from vagram_jax.types import Transition

pytestmark = pytest.mark.usefixtures("key_reuse")

CAPACITY, SIZE, OBS_DIM, ACTION_DIM = 2000, 1500, 3, 1
IN_DIM = 2 * OBS_DIM + ACTION_DIM
CONFIG = termination.TerminationConfig(
    hidden=(32,), learning_rate=3e-3, batch_size=64, steps_per_fit=1000
)


def steps_of(seed, size=CAPACITY):
    """Steps without flags: `(obs, action, next_obs)`, in units far from one."""
    rng = np.random.default_rng(seed)
    obs = 50.0 + 10.0 * rng.normal(size=(size, OBS_DIM))
    action = rng.uniform(-1.0, 1.0, (size, ACTION_DIM))
    next_obs = obs + 5.0 * action + 3.0 * rng.normal(size=obs.shape)
    return [np.float32(x) for x in (obs, action, next_obs)]


def buffer_of(steps, terminated, size=SIZE):
    """A buffer whose first `size` rows are the steps given."""
    rows = np.arange(CAPACITY) < size
    obs, action, next_obs = (
        np.where(rows[:, None], x, np.float32("nan")) for x in steps
    )
    return replay.ReplayState(
        data=Transition(
            obs=obs,
            action=action,
            reward=np.zeros(CAPACITY, np.float32),
            next_obs=next_obs,
            terminated=terminated | ~rows,
            truncated=~rows,
        ),
        insert_at=jnp.int32(size % CAPACITY),
        size=jnp.int32(size),
    )


def falls(steps):
    """The rule of the tests: about one step in nine ends below."""
    return steps[2][:, 0] < 37.0


def falling(seed=0, size=SIZE):
    steps = steps_of(seed)
    return buffer_of(steps, falls(steps), size)


@functools.partial(jax.jit, static_argnames="hidden")
def _init(key, hidden):
    return termination.init(
        key,
        obs_dim=OBS_DIM,
        action_dim=ACTION_DIM,
        config=CONFIG.replace(hidden=hidden),
    )


def init(seed=0, hidden=CONFIG.hidden):
    return _init(jax.random.key(seed), hidden)


def answering(kernel, limit, counts=(1, 1), **fields):
    """A state whose ratio is `limit - inputs @ kernel`, in the units of the data."""
    network = jax.tree.map(np.zeros_like, init().network)
    layers = network["params"]
    # The positive part of that less its negative part.
    for unit, sign in enumerate((1.0, -1.0)):
        layers["Dense_0"]["kernel"][:, unit] = -sign * kernel
        layers["Dense_0"]["bias"][unit] = sign * limit
        layers["Dense_1"]["kernel"][unit] = sign
    return init().replace(network=network, counts=jnp.int32(counts), **fields)


def below(limit, **fields):
    """A state that takes successors below a limit for terminated ones."""
    return answering(np.eye(IN_DIM)[OBS_DIM + ACTION_DIM], limit, **fields)


fit = jax.jit(termination.fit)
log_odds = jax.jit(termination.log_odds)


@jax.jit
def answers(state, steps, algorithm=CONFIG):
    ends = termination.termination_fn(state, config=algorithm)
    return jax.vmap(ends)(*steps)


@functools.cache
def fitted(seed=0):
    return fit(jax.random.key(seed), init(seed), falling(seed), config=CONFIG)


# --- What is learned ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_fit_learns_a_rule_to_two_percent_on_fresh_rows(seed):
    state, metrics = fitted(seed)
    fresh = steps_of(100 + seed)
    actual, expected = np.asarray(answers(state, fresh)), falls(fresh)
    # To say "never" is wrong in 11 %, and of the rare kind few may be missed.
    assert np.mean(expected) > 0.1
    assert np.mean(actual != expected) < 0.02
    assert np.mean(~actual[expected]) < 0.15
    # Untrained, it would be log(2).
    assert metrics["model/termination_loss"] < 0.15


def test_fit_goes_on_from_where_the_last_one_ended():
    state, metrics = fitted()
    _, again = fit(jax.random.key(1), state, falling(), config=CONFIG)
    assert again["model/termination_loss"] < 0.5 * metrics["model/termination_loss"]


def test_fit_counts_the_rows_of_each_kind():
    state, _ = fitted()
    num_terminated = falls(steps_of(0))[:SIZE].sum()
    np.testing.assert_array_equal(state.counts, [num_terminated, SIZE - num_terminated])


@pytest.mark.parametrize(
    ("terminated", "others"),
    [((40, 80, 30), (400, 800, 300)), ((30, 6, 40), (30, 300, 800))],
    ids=["no information", "information"],
)
def test_log_odds_are_those_of_the_counts_at_each_place(terminated, others):
    # Steps stand at one of three places, so the best answer is known: the share of the
    # terminated there. As the minibatches are balanced, it takes the correction.
    rows = np.repeat(np.tile(np.eye(3), (2, 1)), [*terminated, *others], axis=0)
    rows = np.concatenate([rows, np.zeros((CAPACITY - len(rows), 3))])
    size, flags = sum(terminated + others), np.arange(CAPACITY) < sum(terminated)
    data = buffer_of([rows, 0.0 * rows[:, :1], rows], flags, size)
    state = init()
    # The later fits take steps that are too small for noise.
    for rate in (3e-3, 3e-4, 3e-5):
        algorithm = CONFIG.replace(learning_rate=rate)
        state, _ = fit(jax.random.key(0), state, data, config=algorithm)
    places = np.eye(3, dtype=np.float32)
    actual = log_odds(state, places, np.zeros((3, 1)), places, config=CONFIG)
    share = np.divide(terminated, np.add(terminated, others))
    # A thousand minibatches of 128 rows leave a noise of about 0.02.
    np.testing.assert_allclose(actual, special.logit(share), atol=0.1)


def flattened(network):
    layers = network["params"]
    return [
        (layers[f"Dense_{i}"]["kernel"], layers[f"Dense_{i}"]["bias"]) for i in (0, 1)
    ]


def oracle(leaves, structure, state, batch):
    """The cross-entropy in NumPy float64, row by row."""
    layers = flattened(jax.tree.unflatten(structure, leaves))
    inputs = np.concatenate([batch.obs, batch.action, batch.next_obs], axis=1)
    scaled = (np.float64(inputs) - np.float64(state.mean)) / np.float64(state.std)
    (logits,) = np.transpose([oracles.mlp(layers, row, "relu") for row in scaled])
    return -np.mean(special.log_expit(np.where(batch.terminated, logits, -logits)))


def test_cross_entropy_and_its_gradient_equal_the_oracles(x64):
    small = CONFIG.replace(hidden=(4,))
    steps = [np.float64(x[:5]) for x in steps_of(3)]
    data = buffer_of([*steps_of(3)], np.arange(CAPACITY) % 3 == 0)
    batch = jax.tree.map(lambda x: np.asarray(x)[:5], data.data)
    parts = [(np.mean(x, axis=0), np.std(x, axis=0)) for x in steps]
    mean, std = (np.concatenate(x) for x in zip(*parts, strict=True))
    state = jax.tree.map(
        np.asarray, init(hidden=small.hidden).replace(mean=mean, std=std)
    )
    network = jax.tree.map(np.float64, state.network)
    value, gradient = jax.value_and_grad(termination.cross_entropy)(
        network, state, batch, config=small
    )
    leaves, structure = jax.tree.flatten(network)
    assert float(value) == pytest.approx(oracle(leaves, structure, state, batch), 1e-9)
    for i, (leaf, actual) in enumerate(
        zip(leaves, jax.tree.leaves(gradient), strict=True)
    ):
        for index in np.ndindex(leaf.shape):
            ends = []
            for sign in (-1.0, 1.0):
                moved = [x.copy() for x in leaves]
                moved[i][index] += sign * 1e-6
                ends.append(oracle(moved, structure, state, batch))
            # A central difference of numbers of about one: 1e-10.
            assert actual[index] == pytest.approx((ends[1] - ends[0]) / 2e-6, abs=1e-8)


def test_fit_normalises_by_the_rows_that_were_written():
    state, _ = fitted()
    inputs = np.concatenate(steps_of(0), axis=1)[:SIZE]
    mean, std = oracles.moments(inputs, np.ones(SIZE, bool))
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.std, std, rtol=1e-5)


# --- What it says without examples, and of NaN ----------------------------------------


def test_nothing_has_terminated_without_an_example():
    # A network that is sure of the contrary.
    state = answering(np.zeros(IN_DIM), 1e9, counts=(0, 0))
    steps = steps_of(0)
    assert not answers(state, steps).any()
    data = buffer_of(steps, np.zeros(CAPACITY, bool))
    actual, metrics = fit(jax.random.key(0), state, data, config=CONFIG)
    assert not answers(actual, steps).any()
    np.testing.assert_array_equal(actual.counts, [0, SIZE])
    # And nothing was trained.
    cases.assert_identical(actual.network, state.network)
    cases.assert_identical(actual.opt_state, state.opt_state)
    assert np.isnan(metrics["model/termination_loss"])
    # With a single example, it may speak.
    assert answers(actual.replace(counts=jnp.int32([1, SIZE])), steps).all()


def test_everything_has_terminated_while_all_rows_have():
    state = answering(np.zeros(IN_DIM), -1e9)
    data = buffer_of(steps_of(0), np.ones(CAPACITY, bool))
    actual, _ = fit(jax.random.key(0), state, data, config=CONFIG)
    assert answers(actual, steps_of(0)).all()


def test_nan_anywhere_in_a_step_has_terminated():
    never = init()
    step = [x[0] for x in steps_of(0)]
    ends = jax.jit(termination.termination_fn(never, config=CONFIG))
    assert not ends(*step)
    for part, values in enumerate(step):
        for dim in range(values.size):
            broken = list(step)
            broken[part] = values.copy()
            broken[part][dim] = np.nan
            assert ends(*broken)


# --- What is told ---------------------------------------------------------------------


def test_fit_tells_how_it_answered_for_the_rows_since_the_last_fit():
    # Of ten new rows around the end of the ring, six terminated. It takes those whose
    # successor is below zero for such: two of the six, and one of the others.
    new = np.arange(-4, 6) % CAPACITY
    flags, obs = np.zeros(CAPACITY, bool), np.ones((CAPACITY, OBS_DIM))
    flags[new[:6]] = True
    obs[new[[0, 3, 9]]] = -1.0
    # Answers for older rows are all wrong.
    flags[6:-4] = True
    data = buffer_of([obs, obs[:, :1], obs], flags, size=CAPACITY)
    data = data.replace(insert_at=jnp.int32(6))
    state = below(0.0, seen_to=jnp.int32(CAPACITY - 4))
    actual, metrics = fit(jax.random.key(0), state, data, config=CONFIG)
    assert float(metrics["model/termination_missed"]) == pytest.approx(4 / 6)
    assert float(metrics["model/termination_false_alarms"]) == pytest.approx(1 / 4)
    assert int(actual.seen_to) == 6


def test_fit_tells_before_the_first_example_that_all_are_missed():
    _, metrics = fitted()
    assert metrics["model/termination_missed"] == 1.0
    assert metrics["model/termination_false_alarms"] == 0.0


# --- Seeds and keys -------------------------------------------------------------------

SEEDS = range(3)
fit_seeds = jax.jit(jax.vmap(functools.partial(termination.fit, config=CONFIG)))


def stack(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def run_seeds(change=lambda states: states):
    """Three seeds whose buffers are filled to different degrees; one has no example."""
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    data = [
        falling(seed, size) for seed, size in zip(SEEDS, (SIZE, 0, 200), strict=True)
    ]
    data[1] = buffer_of(steps_of(1), np.zeros(CAPACITY, bool), size=900)
    states = change(stack([init(seed) for seed in SEEDS]))
    return fit_seeds(keys, states, stack(data)), data


def test_fit_of_a_seed_equals_that_seed_alone():
    actual, data = run_seeds()
    for seed in SEEDS:
        alone = fit(jax.random.key(seed), init(seed), data[seed], config=CONFIG)
        np.testing.assert_array_equal(actual[0].counts[seed], alone[0].counts)
        # Products in another order, in float32, over a thousand steps.
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-2),
            cases.row(actual, seed),
            alone,
        )


def test_fit_keeps_nan_in_its_seed():
    (clean, _), _ = run_seeds()

    def poison(states):
        return states.replace(
            network=cases.with_row(states.network, 2, lambda x: x * jnp.nan)
        )

    (actual, _), _ = run_seeds(poison)
    assert all(np.isnan(x[2]).all() for x in jax.tree.leaves(actual.network))
    for seed in (0, 1):
        cases.assert_identical(cases.row(actual, seed), cases.row(clean, seed))


def test_fit_draws_by_its_key():
    state, data = init(), falling()
    first, second, again = (
        fit(jax.random.key(seed), state, data, config=CONFIG)[0] for seed in (0, 1, 0)
    )
    cases.assert_identical(first, again)
    kernels = [s.network["params"]["Dense_0"]["kernel"] for s in (first, second)]
    assert not np.array_equal(*kernels)


# --- In imagination and in the loop ---------------------------------------------------


def test_imagine_ends_rollouts_where_it_says():
    # A model that adds -1 to each dimension; -2 and less has terminated.
    model = dynamics.DynamicsConfig(hidden=(), num_members=1, num_elites=1)
    params = dynamics.init_dynamics(
        jax.random.key(0), obs_dim=OBS_DIM, action_dim=ACTION_DIM, config=model
    )
    network = jax.tree.map(lambda x: jnp.full_like(x, -(x.ndim == 2)), params.network)
    _, valid = imagine.imagine(
        jax.random.key(0),
        params.replace(network=network),
        jnp.array([0]),
        jnp.float32([[0.0] * 3, [-1.0] * 3, [9.0] * 3]),
        act=lambda key, obs: obs[:, :ACTION_DIM],
        termination=termination.termination_fn(below(-1.5), config=CONFIG),
        horizon=5,
        max_horizon=5,
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
    # A run without one has other arrays, which is told and not repaired.
    with pytest.raises(checkpoint.CheckpointError, match=r"\.termination\."):
        states.unpack(read, shapes.replace(termination=None), devices.Layout())


# --- What is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("hidden", (64, 0), "at least 1"),
        ("learning_rate", 0.0, "above 0"),
        ("batch_size", 0, "at least 1"),
        ("steps_per_fit", 0, "at least 1"),
    ],
)
def test_config_refuses_a_value_out_of_range(key, value, accepted):
    with pytest.raises(config.ConfigError, match=rf"termination\.{key}=.*{accepted}"):
        config.from_mapping(mbpo.MBPOConfig, {"termination": {key: value}})
