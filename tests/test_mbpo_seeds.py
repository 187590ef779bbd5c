"""Many seeds in one program: none of them knows of the others, and none harms them."""

import jax
import jax.numpy as jnp
import mbpo_cases as cases
import numpy as np
import pytest

from vagram_jax import mbpo
from vagram_jax.run import loop

SICK = 3
OTHERS = [seed for seed in range(cases.NUM_SEEDS) if seed != SICK]
TWO_EPOCHS_ON = cases.WARMUP + 2 * cases.STEPS


def bad_critic(value):
    """Puts a number into the bias of one of a seed's critics' last layers."""

    def change(state):
        def poison(path, leaf):
            name = jax.tree_util.keystr(path)
            is_last = "Dense_1" in name and "bias" in name
            return leaf.at[SICK, 0].set(value) if is_last else leaf

        critics = jax.tree_util.tree_map_with_path(poison, state.agent.critics)
        return state.replace(agent=state.agent.replace(critics=critics))

    return change


def bad_model(state):
    params = state.dynamics.params
    params = params.replace(network=cases.with_row(params.network, SICK, nan_like))
    return state.replace(dynamics=state.dynamics.replace(params=params))


def bad_observation(state):
    inner = state.episode.env_state
    inner = inner.replace(obs=cases.with_row(inner.obs, SICK, nan_like))
    return state.replace(episode=state.episode.replace(env_state=inner))


def nan_like(x):
    return jnp.full_like(x, jnp.nan)


SICKNESSES = {
    "nan_in_a_critic": bad_critic(np.nan),
    "infinity_in_a_critic": bad_critic(np.inf),
    "a_critic_beyond_the_bound": bad_critic(1e8),
    "nan_in_the_model": bad_model,
}
every_sickness = pytest.mark.parametrize("harm", SICKNESSES.values(), ids=SICKNESSES)


def one_epoch_on():
    return cases.epoch_seeds(cases.start_seeds())[0]


@every_sickness
def test_epoch_leaves_the_neighbours_of_a_diverging_seed_bit_identical(harm):
    clean, _ = cases.epoch_seeds(one_epoch_on())
    found, _ = cases.epoch_seeds(harm(one_epoch_on()))
    cases.assert_identical(cases.row(found, OTHERS), cases.row(clean, OTHERS))


@every_sickness
def test_epoch_flags_the_seed_that_diverges_and_no_other(harm):
    found, _ = cases.epoch_seeds(harm(one_epoch_on()))
    wanted = np.arange(cases.NUM_SEEDS) != SICK
    np.testing.assert_array_equal(found.alive, wanted)
    np.testing.assert_array_equal(
        found.diverged_at, np.where(wanted, -1, TWO_EPOCHS_ON)
    )


@every_sickness
def test_epoch_freezes_a_diverged_seed_as_it_was_before(harm):
    before = harm(one_epoch_on())
    found, _ = cases.epoch_seeds(before)
    # All but the two that say so: buffers, counters, the environment and both keys too.
    wanted = before.replace(alive=found.alive, diverged_at=found.diverged_at)
    cases.assert_identical(cases.row(found, SICK), cases.row(wanted, SICK))


@every_sickness
def test_epoch_leaves_a_dead_seed_as_it_is(harm):
    dead, _ = cases.epoch_seeds(harm(one_epoch_on()))
    found, _ = cases.epoch_seeds(dead)
    cases.assert_identical(cases.row(found, SICK), cases.row(dead, SICK))


def test_epoch_does_not_wake_a_dead_seed_that_could_go_on():
    states = one_epoch_on()
    states = states.replace(alive=states.alive.at[SICK].set(False))
    found, _ = cases.epoch_seeds(states)
    cases.assert_identical(cases.row(found, SICK), cases.row(states, SICK))


def test_epoch_goes_on_after_an_observation_that_is_not_finite():
    before = bad_observation(one_epoch_on())
    found, _ = cases.epoch_seeds(before)
    assert np.all(found.alive)
    dropped = np.zeros(cases.NUM_SEEDS)
    dropped[SICK] = 1
    np.testing.assert_array_equal(found.dropped, dropped)
    rows = found.replay.size - before.replay.size
    np.testing.assert_array_equal(rows, cases.STEPS - dropped)


def test_epoch_keeps_a_broken_observation_from_the_neighbours():
    clean, _ = cases.epoch_seeds(one_epoch_on())
    found, _ = cases.epoch_seeds(bad_observation(one_epoch_on()))
    cases.assert_identical(cases.row(found, OTHERS), cases.row(clean, OTHERS))


def test_epoch_of_permuted_seeds_gives_permuted_states_bit_for_bit():
    order = (5, 2, 7, 0, 3, 6, 1, 4)
    wanted, _ = cases.epoch_seeds(cases.start_seeds(), epochs=2)
    found, _ = cases.epoch_seeds(cases.start_seeds(order), epochs=2)
    cases.assert_identical(found, cases.row(wanted, list(order)))


def test_epoch_of_a_seed_does_not_depend_on_which_seeds_are_beside_it():
    wanted, _ = cases.epoch_seeds(cases.start_seeds(), epochs=2)
    beside = cases.start_seeds((0, 1, 2, 3, 100, 101, 102, 103))
    found, _ = cases.epoch_seeds(beside, epochs=2)
    cases.assert_identical(cases.row(found, [0, 1, 2, 3]), cases.row(wanted, range(4)))


def test_epoch_of_several_seeds_is_close_to_that_of_one():
    states = cases.start_seeds()
    several, _ = cases.epoch_seeds(states)
    alone, _ = cases.epoch(jax.tree.map(lambda x: x[SICK], states))
    found = cases.row(several, SICK)
    # Sums are taken in another order when seeds are a batch axis, and an epoch makes
    # some tens of Adam steps, each as long as the learning rate whatever the gradient.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        (found.agent, found.dynamics.params, found.replay.data),
        cases.bits((alone.agent, alone.dynamics.params, alone.replay.data)),
    )


def test_seeds_draw_from_keys_of_their_own():
    # JAX's check for reused keys refuses any loop over keys that were split under vmap,
    # so that it is asked for one seed only, and this for several.
    states, _ = cases.epoch_seeds(cases.start_seeds())
    for key in (states.key, states.episode.env_state.pipeline_state):
        assert len(np.unique(cases.bits(key), axis=0)) == cases.NUM_SEEDS
    # Not two alike among all actions that any seed took.
    sizes = np.asarray(states.replay.size)
    actions = np.asarray(states.replay.data.action)
    taken = np.concatenate([a[:n] for a, n in zip(actions, sizes, strict=True)])
    assert len(np.unique(taken, axis=0)) == len(taken) == cases.NUM_SEEDS * 15


def test_epoch_trains_all_seeds_in_one_program():
    states, _ = cases.epoch_seeds(cases.start_seeds())
    traces = cases.Walk.traces
    cases.epoch_seeds(states, epochs=3)
    assert cases.Walk.traces == traces


def test_epoch_takes_other_numbers_of_the_config_without_tracing_again():
    states, _ = cases.epoch_seeds(cases.start_seeds())
    traces = cases.Walk.traces
    config = cases.CONFIG
    other = config.replace(
        real_fraction=(0.25,),
        divergence_slack=20.0,
        fit=config.fit.replace(learning_rate=1e-2),
        sac=config.sac.replace(discount=0.9, critic_learning_rate=1e-2),
        weights=config.weights.replace(mse_coef=0.1, mse_steps=20.0),
    )
    found, _ = cases.epoch_seeds(states, other)
    assert cases.Walk.traces == traces
    # And the numbers are used, not those that were there when it was compiled.
    wanted, _ = cases.epoch_seeds(states)
    for part in (lambda s: s.agent.critics, lambda s: s.dynamics.params.network):
        pairs = zip(*map(jax.tree.leaves, (part(found), part(wanted))), strict=True)
        assert not any(np.array_equal(*pair) for pair in pairs)


def test_losses_differ_in_the_program_of_the_fit_alone():
    def text(loss, **weights):
        weights = cases.CONFIG.weights.replace(**weights)
        lanes = cases.lanes(config=cases.CONFIG.replace(loss=loss, weights=weights))
        states = jax.eval_shape(cases.PROGRAMS.init, lanes)
        fitted, _ = jax.eval_shape(cases.PROGRAMS.fit_model, states, lanes)
        lowered = (
            cases.PROGRAMS.init.lower(lanes),
            cases.PROGRAMS.warm_up.lower(states, lanes),
            cases.PROGRAMS.evaluate.lower(states, lanes, np.uint32(0)),
            cases.PROGRAMS.improve_policy.lower(states, fitted, lanes),
            cases.PROGRAMS.fit_model.lower(states, lanes),
        )
        return [program.as_text() for program in lowered]

    vagram = text("vagram", gradient_share=(0.0, 1.0, 5.0, 10.0))
    mse = text("mse_normalized")
    assert [a == b for a, b in zip(vagram, mse, strict=True)] == [True] * 4 + [False]


def test_epoch_is_traced_again_for_another_shape():
    states = cases.start_seeds()
    traces = cases.Walk.traces
    lanes = cases.lanes(config=cases.CONFIG.replace(batch_size=9))
    fitted, _ = jax.eval_shape(cases.PROGRAMS.fit_model, states, lanes)
    cases.PROGRAMS.improve_policy.trace(states, fitted, lanes)
    assert cases.Walk.traces > traces


def test_epoch_gives_each_lane_the_numbers_of_its_own_config():
    states, _ = cases.epoch_seeds(cases.start_seeds())
    other = cases.CONFIG.replace(
        real_fraction=(0.25,),
        fit=cases.CONFIG.fit.replace(learning_rate=1e-2),
        sac=cases.CONFIG.sac.replace(discount=0.9),
    )
    seeds = range(cases.NUM_SEEDS)
    configs = [other if seed in (1, 6) else cases.CONFIG for seed in seeds]
    lanes = cases.placed(loop.stack_lanes(seeds, configs))
    traces = cases.Walk.traces
    found, _ = loop.epoch(cases.PROGRAMS, cases.fresh(states), lanes)
    assert cases.Walk.traces == traces
    for config in (cases.CONFIG, other):
        wanted, _ = cases.epoch_seeds(states, config)
        own = [lane for lane, its in enumerate(configs) if its is config]
        cases.assert_identical(cases.row(found, own), cases.row(wanted, own))


def test_lanes_hold_a_seed_and_the_numbers_of_a_config_each():
    other = cases.CONFIG.replace(divergence_slack=7.0)
    seeds, configs = loop.stack_lanes([5, 2**31], [cases.CONFIG, other])
    assert seeds.dtype == np.uint32
    np.testing.assert_array_equal(seeds, [5, 2**31])
    slack = np.float32([cases.CONFIG.divergence_slack, 7.0])
    np.testing.assert_array_equal(configs.divergence_slack, slack)
    assert configs.batch_size == cases.CONFIG.batch_size
    shapes = {leaf.shape for leaf in jax.tree.leaves(configs)}
    assert shapes == {(2,)}


@pytest.mark.parametrize(
    "change", [{"batch_size": 9}, {"loss": "mle"}, {"real_fraction": (0.5, 0.4, 0, 1)}]
)
def test_lanes_refuse_configs_that_differ_in_more_than_numbers(change):
    with pytest.raises(ValueError, match="differ in more than numbers; train them"):
        loop.stack_lanes([0, 1], [cases.CONFIG, cases.CONFIG.replace(**change)])


def test_epoch_maps_over_a_grid_of_numbers_of_the_config():
    states = jax.tree.map(lambda x: x[:2], cases.start_seeds())
    grid = jax.tree.map(lambda x: jnp.array([x, 0.5 * x]), cases.CONFIG)

    def epoch(state, config):
        around = {"env": cases.WALK, "episode_length": cases.EPISODE_LENGTH}
        return mbpo.epoch(state, config=config, **around)

    found, _ = jax.eval_shape(jax.vmap(epoch), states, grid)
    shapes = jax.eval_shape(lambda x: x, states)
    assert jax.tree.leaves(found) == jax.tree.leaves(shapes)
