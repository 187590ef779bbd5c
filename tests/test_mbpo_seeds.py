"""Many seeds in one vmapped program: no seed depends on the others."""

from functools import partial

import jax
import jax.numpy as jnp
import mbpo_cases as cases
import numpy as np
import pytest

from vagram_jax import mbpo, schedules

BAD = 3
OTHERS = [seed for seed in range(cases.NUM_SEEDS) if seed != BAD]
TWO_EPOCHS_ON = cases.WARMUP + 2 * cases.STEPS


def bad_critic(value):
    """Sets the last bias of one critic of one seed to a number."""

    def change(state):
        def set_bias(path, leaf):
            name = jax.tree_util.keystr(path)
            is_last = "Dense_1" in name and "bias" in name
            return leaf.at[BAD, 0].set(value) if is_last else leaf

        critics = jax.tree_util.tree_map_with_path(set_bias, state.agent.critics)
        return state.replace(agent=state.agent.replace(critics=critics))

    return change


def bad_model(state):
    params = state.dynamics.params
    params = params.replace(network=cases.with_row(params.network, BAD, nan_like))
    return state.replace(dynamics=state.dynamics.replace(params=params))


def bad_observation(state):
    inner = state.episode.env_state
    inner = inner.replace(obs=cases.with_row(inner.obs, BAD, nan_like))
    return state.replace(episode=state.episode.replace(env_state=inner))


def nan_like(x):
    return jnp.full_like(x, jnp.nan)


FAULTS = {
    "nan_in_a_critic": bad_critic(np.nan),
    "infinity_in_a_critic": bad_critic(np.inf),
    "a_critic_beyond_the_bound": bad_critic(1e8),
    "nan_in_the_model": bad_model,
}
every_fault = pytest.mark.parametrize("poison_seed", FAULTS.values(), ids=FAULTS)


def one_epoch_on():
    return cases.epoch_seeds(cases.start_seeds())[0]


@every_fault
def test_epoch_leaves_the_neighbours_of_a_diverging_seed_bit_identical(poison_seed):
    clean, _ = cases.epoch_seeds(one_epoch_on())
    actual, _ = cases.epoch_seeds(poison_seed(one_epoch_on()))
    cases.assert_identical(cases.row(actual, OTHERS), cases.row(clean, OTHERS))


@every_fault
def test_epoch_flags_the_seed_that_diverges_and_no_other(poison_seed):
    actual, _ = cases.epoch_seeds(poison_seed(one_epoch_on()))
    expected = np.arange(cases.NUM_SEEDS) != BAD
    np.testing.assert_array_equal(actual.alive, expected)
    np.testing.assert_array_equal(
        actual.diverged_at, np.where(expected, -1, TWO_EPOCHS_ON)
    )


@every_fault
def test_epoch_freezes_a_diverging_seed_in_the_state_before_it(poison_seed):
    before = poison_seed(one_epoch_on())
    actual, _ = cases.epoch_seeds(before)
    # Everything but the flags is as before: buffers, counters, environment, keys.
    expected = before.replace(
        alive=actual.alive,
        diverged_at=actual.diverged_at,
        diverged_by=actual.diverged_by,
    )
    cases.assert_identical(cases.row(actual, BAD), cases.row(expected, BAD))


@every_fault
def test_epoch_keeps_a_diverged_seed_frozen(poison_seed):
    dead, _ = cases.epoch_seeds(poison_seed(one_epoch_on()))
    actual, _ = cases.epoch_seeds(dead)
    cases.assert_identical(cases.row(actual, BAD), cases.row(dead, BAD))


def test_epoch_keeps_a_frozen_seed_frozen_even_if_it_is_healthy():
    states = one_epoch_on()
    states = states.replace(alive=states.alive.at[BAD].set(False))
    actual, _ = cases.epoch_seeds(states)
    cases.assert_identical(cases.row(actual, BAD), cases.row(states, BAD))


def test_epoch_drops_a_non_finite_observation_and_continues():
    before = bad_observation(one_epoch_on())
    actual, _ = cases.epoch_seeds(before)
    assert np.all(actual.alive)
    dropped = np.zeros(cases.NUM_SEEDS)
    dropped[BAD] = 1
    np.testing.assert_array_equal(actual.dropped, dropped)
    rows = actual.replay.size - before.replay.size
    np.testing.assert_array_equal(rows, cases.STEPS - dropped)


def test_epoch_keeps_a_broken_observation_from_the_neighbours():
    clean, _ = cases.epoch_seeds(one_epoch_on())
    actual, _ = cases.epoch_seeds(bad_observation(one_epoch_on()))
    cases.assert_identical(cases.row(actual, OTHERS), cases.row(clean, OTHERS))


def test_epoch_of_permuted_seeds_gives_permuted_states_bit_for_bit():
    order = (5, 2, 7, 0, 3, 6, 1, 4)
    expected, _ = cases.epoch_seeds(cases.start_seeds(), epochs=2)
    actual, _ = cases.epoch_seeds(cases.start_seeds(order), epochs=2)
    cases.assert_identical(actual, cases.row(expected, list(order)))


def test_epoch_of_a_seed_does_not_depend_on_the_other_seeds():
    expected, _ = cases.epoch_seeds(cases.start_seeds(), epochs=2)
    beside = cases.start_seeds((0, 1, 2, 3, 100, 101, 102, 103))
    actual, _ = cases.epoch_seeds(beside, epochs=2)
    cases.assert_identical(
        cases.row(actual, [0, 1, 2, 3]), cases.row(expected, range(4))
    )


def test_epoch_of_several_seeds_is_close_to_that_of_one():
    states = cases.start_seeds()
    several, _ = cases.epoch_seeds(states)
    alone, _ = cases.epoch(jax.tree.map(lambda x: x[BAD], states))
    actual = cases.row(several, BAD)
    # Sums are taken in another order when seeds are a batch axis, and an epoch makes
    # some tens of Adam steps, each as long as the learning rate whatever the gradient.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        (actual.agent, actual.dynamics.params, actual.replay.data),
        cases.bits((alone.agent, alone.dynamics.params, alone.replay.data)),
    )


def test_each_seed_draws_from_its_own_keys():
    # JAX's check for key reuse refuses loops over keys that were split under vmap, so
    # it is on for one seed only, and this test covers several.
    states, _ = cases.epoch_seeds(cases.start_seeds())
    for key in (states.key, states.episode.env_state.pipeline_state):
        assert len(np.unique(cases.bits(key), axis=0)) == cases.NUM_SEEDS
    # No two actions of any seeds are equal.
    sizes = np.asarray(states.replay.size)
    actions = np.asarray(states.replay.data.action)
    taken = np.concatenate([a[:n] for a, n in zip(actions, sizes, strict=True)])
    assert len(np.unique(taken, axis=0)) == len(taken) == cases.NUM_SEEDS * 15


# A config whose state has every part that is optional.
WITH_ALL_PARTS = cases.CONFIG.replace(
    imagine=cases.CONFIG.imagine.replace(termination="learned"),
    sac=cases.CONFIG.sac.replace(normalize_obs=True, actor_layer_norm=True),
)


@pytest.mark.parametrize(
    "algorithm", [cases.PLAIN_SAC, WITH_ALL_PARTS], ids=["none", "all"]
)
def test_no_epoch_changes_the_types_of_the_state(algorithm):
    # Weak types count, too: with others, the programs would compile again.
    types = jax.eval_shape(cases.start_one, jax.random.key(0), 0, algorithm)
    assert not any(x.weak_type for x in jax.tree.leaves(types))
    after, _ = jax.eval_shape(cases.epoch_one, types, 0, algorithm)
    assert jax.tree.map(str, after) == jax.tree.map(str, types)


def test_epoch_trains_all_seeds_in_one_program():
    states, _ = cases.epoch_seeds(cases.start_seeds())
    traces = cases.Walk.traces
    cases.epoch_seeds(states, epochs=3)
    assert cases.Walk.traces == traces


def test_epoch_with_other_config_numbers_is_the_same_program():
    states, _ = cases.epoch_seeds(cases.start_seeds())
    traces = cases.Walk.traces
    config = cases.CONFIG
    other = config.replace(
        real_fraction=schedules.constant(0.25),
        divergence_slack=20.0,
        fit=config.fit.replace(learning_rate=1e-2),
        sac=config.sac.replace(discount=0.9, critic_learning_rate=1e-2),
        weights=config.weights.replace(
            mse_coef=schedules.Schedule(0.1, 0.0, 20.0, 20.0)
        ),
    )
    actual, _ = cases.epoch_seeds(states, other)
    assert cases.Walk.traces == traces
    # The new numbers are used, not those that were compiled.
    expected, _ = cases.epoch_seeds(states)
    for part in (lambda s: s.agent.critics, lambda s: s.dynamics.params.network):
        pairs = zip(*map(jax.tree.leaves, (part(actual), part(expected))), strict=True)
        assert not any(np.array_equal(*pair) for pair in pairs)


def test_losses_differ_only_in_the_program_of_the_fit():
    def texts(**fields):
        config = cases.CONFIG.replace(**fields)
        state = jax.eval_shape(lambda: cases.start(config=config))
        halves = [
            jax.jit(partial(mbpo.fit_model, config=config)),
            jax.jit(partial(mbpo.improve_policy, env=cases.WALK, config=config)),
        ]
        fitted, _ = jax.eval_shape(halves[0], state)
        return [
            halves[0].lower(state).as_text(),
            halves[1].lower(state, fitted).as_text(),
        ]

    weights = cases.CONFIG.weights.replace(normalize=True)
    vagram, mse = texts(loss="vagram", weights=weights), texts(loss="mse_normalized")
    assert [a == b for a, b in zip(vagram, mse, strict=True)] == [False, True]


def test_epoch_with_another_batch_size_is_another_program():
    states = cases.start_seeds()
    traces = cases.Walk.traces
    config = cases.CONFIG.replace(batch_size=9)
    jax.eval_shape(partial(cases.epoch_seeds, config=config), states)
    assert cases.Walk.traces > traces


def test_epoch_gives_each_seed_the_numbers_of_its_own_config():
    states, _ = cases.epoch_seeds(cases.start_seeds())
    other = cases.CONFIG.replace(
        real_fraction=schedules.constant(0.25),
        fit=cases.CONFIG.fit.replace(learning_rate=1e-2),
        sac=cases.CONFIG.sac.replace(discount=0.9),
    )
    configs = [other if seed in (1, 6) else cases.CONFIG for seed in range(8)]
    actual, _ = cases.epoch_lanes(states, cases.stacked(configs))
    for config in (cases.CONFIG, other):
        expected, _ = cases.epoch_seeds(states, config)
        own = [i for i, its_config in enumerate(configs) if its_config is config]
        cases.assert_identical(cases.row(actual, own), cases.row(expected, own))
