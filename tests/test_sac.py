"""Soft actor-critic: against NumPy with the same noise, and what it promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_sac
import pytest

from vagram_jax import sac
from vagram_jax.types import Transition

# float64 arithmetic in another order.
EXACT = 1e-11
OBS_DIM, ACTION_DIM, ROWS = 3, 2, 5
CONFIG = sac.SACConfig(hidden=(4, 3), discount=0.9, target_rate=0.3)


def make_state(seed, config=CONFIG, dtype=np.float64):
    """An agent with no zero in it, whose targets differ from its critics."""
    sizes = {"obs_dim": OBS_DIM, "action_dim": ACTION_DIM, "config": config}
    shapes = jax.eval_shape(lambda: sac.init(jax.random.key(0), **sizes))
    rng = np.random.default_rng(seed)

    def random(tree):
        return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(dtype), tree)

    def zeros(x):
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return np.zeros(x.shape, dtype if is_float else x.dtype)

    state = jax.tree.map(zeros, shapes)
    return state.replace(
        actor=random(state.actor),
        critics=random(state.critics),
        target_critics=random(state.target_critics),
        obs_std=np.ones(OBS_DIM, dtype),
        log_temperature=np.asarray(-0.7, dtype),
    )


@jax.jit
def new_agent():
    sizes = {"obs_dim": OBS_DIM, "action_dim": ACTION_DIM, "config": CONFIG}
    return sac.init(jax.random.key(0), **sizes)


def make_batch(seed, **fields):
    batch = oracles.random_batch(seed, (ROWS,), OBS_DIM, ACTION_DIM) | fields
    return batch, Transition(**batch)


def layers_of(params, index=()):
    """The layers of one network, out of the stack of them if `index` is given."""
    inner = params["params"]["mlp"]
    return [
        tuple(np.asarray(inner[f"Dense_{i}"][n])[index] for n in ("kernel", "bias"))
        for i in range(len(inner))
    ]


def critics_of(params):
    return [layers_of(params, index) for index in (0, 1)]


def normal(key, rows=ROWS):
    return np.asarray(jax.random.normal(key, (rows, ACTION_DIM)))


def both_noises(key):
    """What an update draws: for the next actions, and for the present ones."""
    return np.asarray(jax.random.normal(key, (2, ROWS, ACTION_DIM)))


target_of = jax.jit(sac.bellman_target)
update = jax.jit(sac.update)


@jax.jit
def values_at(state, obs, config):
    return sac.value_fn(state, config=config)(obs)


@jax.jit
def slope_at(state, obs, config):
    return jax.jacrev(sac.value_fn(state, config=config))(obs)


def test_bellman_target_equals_the_oracle(x64):
    state, (rows, batch) = make_state(0), make_batch(0)
    assert 0 < rows["terminated"].sum() < ROWS
    actual = target_of(normal(jax.random.key(1)), state, batch, config=CONFIG)
    expected = oracles_sac.bellman_target(
        layers_of(state.actor),
        critics_of(state.target_critics),
        np.exp(-0.7),
        rows,
        normal(jax.random.key(1)),
        CONFIG.discount,
    )
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bellman_target_of_a_termination_is_the_reward_whatever_follows(x64, value):
    next_obs = np.full((ROWS, OBS_DIM), value)
    rows, batch = make_batch(1, next_obs=next_obs, terminated=np.ones(ROWS, bool))
    actual = target_of(normal(jax.random.key(2)), make_state(1), batch, config=CONFIG)
    np.testing.assert_array_equal(actual, rows["reward"])


def test_bellman_target_ignores_truncation(x64):
    _, cut = make_batch(2, truncated=np.ones(ROWS, bool))
    _, whole = make_batch(2, truncated=np.zeros(ROWS, bool))
    state, noise = make_state(2), normal(jax.random.key(3))
    actual = target_of(noise, state, cut, config=CONFIG)
    np.testing.assert_array_equal(actual, target_of(noise, state, whole, config=CONFIG))


def test_bellman_target_without_discount_is_the_reward(x64):
    rows, batch = make_batch(3, terminated=np.zeros(ROWS, bool))
    config = CONFIG.replace(discount=0.0)
    actual = target_of(normal(jax.random.key(4)), make_state(3), batch, config=config)
    np.testing.assert_array_equal(actual, rows["reward"])


def test_bellman_target_at_temperature_zero_is_the_smaller_value(x64):
    state = make_state(4).replace(log_temperature=jnp.asarray(-np.inf))
    rows, batch = make_batch(4, terminated=np.zeros(ROWS, bool))
    key = jax.random.key(5)
    actual = target_of(normal(key), state, batch, config=CONFIG)
    actor, targets = layers_of(state.actor), critics_of(state.target_critics)
    for row, noise in enumerate(normal(key)):
        next_obs = rows["next_obs"][row]
        action, _ = oracles_sac.sample(actor, next_obs, noise)
        smaller = min(oracles_sac.q_value(t, next_obs, action) for t in targets)
        expected = rows["reward"][row] + CONFIG.discount * smaller
        np.testing.assert_allclose(actual[row], expected, rtol=EXACT)


def test_update_reports_the_losses_of_the_oracle(x64):
    state, (rows, batch) = make_state(5), make_batch(5)
    noise_next, noise_now = both_noises(jax.random.key(6))
    new, metrics = update(jax.random.key(6), state, batch, config=CONFIG)
    target = target_of(noise_next, state, batch, config=CONFIG)
    actor_loss, log_probs = oracles_sac.actor_loss(
        layers_of(state.actor),
        critics_of(new.critics),  # the actor follows the critics as they are now
        np.exp(-0.7),
        rows,
        noise_now,
    )
    q = [
        oracles_sac.q_value(critic, *pair)
        for critic in critics_of(state.critics)
        for pair in zip(rows["obs"], rows["action"], strict=True)
    ]
    expected = {
        "sac/critic_loss": oracles_sac.critic_loss(
            critics_of(state.critics), rows, target
        ),
        "sac/actor_loss": actor_loss,
        "sac/entropy": -log_probs.mean(),
        "sac/temperature": np.exp(-0.7),
        "sac/q_mean": np.mean(q),
        "sac/q_max": np.max(np.abs(q)),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=EXACT, err_msg=name)


def test_update_lowers_both_losses_of_the_oracle(x64):
    # Steps so small that the losses are straight lines: going down is then certain.
    config = CONFIG.replace(actor_learning_rate=1e-6, critic_learning_rate=1e-6)
    state, (rows, batch) = make_state(6), make_batch(6)
    noise_next, noise_now = both_noises(jax.random.key(7))
    new, _ = update(jax.random.key(7), state, batch, config=config)
    target = target_of(noise_next, state, batch, config=config)
    before, after = (
        oracles_sac.critic_loss(critics_of(agent.critics), rows, target)
        for agent in (state, new)
    )
    assert after < before
    before, after = (
        oracles_sac.actor_loss(
            layers_of(agent.actor),
            critics_of(new.critics),
            np.exp(-0.7),
            rows,
            noise_now,
        )[0]
        for agent in (state, new)
    )
    assert after < before


@pytest.mark.parametrize("target_entropy", [None, -7.0, 3.0])
def test_update_moves_the_temperature_as_the_oracle(x64, target_entropy):
    config = CONFIG.replace(target_entropy=target_entropy)
    state, (_, batch) = make_state(7), make_batch(7)
    new, metrics = update(jax.random.key(8), state, batch, config=config)
    target = -ACTION_DIM if target_entropy is None else target_entropy
    step = oracles_sac.first_adam_step(
        metrics["sac/entropy"] - target, config.temperature_learning_rate
    )
    # The square in Adam's second average is rounded, and the step beside 0.7.
    np.testing.assert_allclose(new.log_temperature + 0.7, step, rtol=1e-9)


@pytest.mark.parametrize(("target_entropy", "sign"), [(50.0, 1), (-50.0, -1)])
def test_update_raises_the_temperature_while_entropy_is_too_low(
    x64, target_entropy, sign
):
    config = CONFIG.replace(target_entropy=target_entropy)
    state, (_, batch) = make_state(8), make_batch(8)
    new, _ = update(jax.random.key(9), state, batch, config=config)
    assert np.sign(new.log_temperature - state.log_temperature) == sign


def test_update_moves_the_targets_by_the_target_rate(x64):
    state, (_, batch) = make_state(9), make_batch(9)
    new, _ = update(jax.random.key(10), state, batch, config=CONFIG)
    expected = jax.tree.map(
        lambda old, critic: 0.7 * old + 0.3 * critic, state.target_critics, new.critics
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT),
        new.target_critics,
        expected,
    )


def test_init_starts_the_targets_at_the_critics():
    state = new_agent()
    jax.tree.map(np.testing.assert_array_equal, state.target_critics, state.critics)


def test_init_gives_each_critic_different_parameters():
    state = new_agent()
    kernels = state.critics["params"]["mlp"]["Dense_0"]["kernel"]
    assert not np.any(kernels[0] == kernels[1])


def test_update_uses_each_key_once(key_reuse):
    _, batch = make_batch(10)
    state = make_state(10, dtype=np.float32)
    new, _ = jax.jit(sac.update)(jax.random.key(11), state, batch, config=CONFIG)
    assert np.isfinite(new.log_temperature)


def test_update_keeps_nan_in_its_seed():
    states = jax.tree.map(
        lambda *x: jnp.stack(x), *[make_state(i, dtype=np.float32) for i in range(3)]
    )
    _, batch = make_batch(11)
    one_seed = functools.partial(sac.update, config=CONFIG)
    step = jax.jit(jax.vmap(one_seed, in_axes=(0, 0, None)))
    keys = jax.random.split(jax.random.key(12), 3)

    def run(agents):
        for _ in range(3):
            agents, metrics = step(keys, agents, batch)
        return agents, metrics

    poisoned = states.replace(
        actor=jax.tree.map(lambda x: x.at[1].set(jnp.nan), states.actor)
    )
    clean, actual = run(states), run(poisoned)
    assert np.isnan(actual[0].log_temperature[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[::2], b[::2]), actual, clean
    )


def test_act_equals_the_oracle(x64):
    state, (rows, _) = make_state(12), make_batch(12)
    key = jax.random.key(13)
    actual = jax.jit(sac.act)(key, state, rows["obs"], config=CONFIG)
    actor = layers_of(state.actor)
    expected = [
        oracles_sac.sample(actor, obs, noise)[0]
        for obs, noise in zip(rows["obs"], normal(key), strict=True)
    ]
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_act_stays_within_the_bounds():
    state = new_agent()
    obs = jax.random.normal(jax.random.key(1), (1000, OBS_DIM))
    actual = jax.jit(sac.act)(jax.random.key(2), state, obs, config=CONFIG)
    assert actual.shape == (1000, ACTION_DIM)
    assert np.all(np.abs(actual) < 1.0)


def test_act_mean_is_the_tanh_of_the_mean(x64):
    state, (rows, _) = make_state(13), make_batch(13)
    actual = jax.jit(sac.act_mean)(state, rows["obs"], config=CONFIG)
    actor = layers_of(state.actor)
    expected = [np.tanh(oracles_sac.policy(actor, obs)[0]) for obs in rows["obs"]]
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_policy_of_another_agent_is_the_same_program():
    traces = []

    @jax.jit
    def run(policy, key, obs):
        traces.append(None)
        return policy(key, obs)

    key, obs = jax.random.key(0), jnp.ones(OBS_DIM)
    for seed in (0, 1):
        state = make_state(seed, dtype=np.float32)
        actual = run(sac.policy(state, config=CONFIG), key, obs)
        expected = sac.act(key, state, obs, config=CONFIG)
        # float32, inside of a program and outside.
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert len(traces) == 1


def test_value_fn_gives_critics_then_targets_at_the_mean_action(x64):
    state, (rows, _) = make_state(14), make_batch(14)
    obs = rows["obs"][0]
    actual = values_at(state, obs, CONFIG)
    four = critics_of(state.critics) + critics_of(state.target_critics)
    expected = oracles_sac.values(layers_of(state.actor), four, obs)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_value_fn_of_the_target_critics_leaves_the_others_out(x64):
    state, (rows, _) = make_state(14), make_batch(14)
    obs = rows["obs"][0]
    actual = values_at(state, obs, CONFIG.replace(value_critics="target"))
    two = critics_of(state.target_critics)
    expected = oracles_sac.values(layers_of(state.actor), two, obs)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


@pytest.mark.parametrize("through_policy", [True, False])
def test_value_fn_differentiates_through_the_policy_if_asked(x64, through_policy):
    config = CONFIG.replace(value_through_policy=through_policy)
    state, (rows, _) = make_state(15), make_batch(15)
    obs, actor = rows["obs"][0], layers_of(state.actor)
    four = critics_of(state.critics) + critics_of(state.target_critics)
    held = None if through_policy else np.tanh(oracles_sac.policy(actor, obs)[0])
    expected = oracles.value_gradients(
        lambda s: oracles_sac.values(actor, four, s, held), obs[None]
    )[0]
    # Central differences in float64: rounding and truncation are each near 1e-10.
    np.testing.assert_allclose(slope_at(state, obs, config), expected, atol=1e-8)


def test_value_fn_lets_no_gradient_into_the_agent():
    state, obs = make_state(16, dtype=np.float32), jnp.ones(OBS_DIM)

    @jax.jit
    @jax.grad
    def slope(networks):
        value_fn = sac.value_fn(state.replace(**networks), config=CONFIG)
        return jnp.sum(value_fn(obs))

    names = ("actor", "critics", "target_critics")
    actual = slope({name: getattr(state, name) for name in names})
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0.0), actual)


def test_value_fn_of_another_agent_is_the_same_program():
    traces = []

    @jax.jit
    def run(value_fn, obs):
        traces.append(None)
        return value_fn(obs)

    actual = [
        run(sac.value_fn(make_state(i, dtype=np.float32), config=CONFIG), jnp.ones(3))
        for i in (0, 1)
    ]
    assert len(traces) == 1
    assert not np.any(actual[0] == actual[1])


def test_value_fn_is_data_for_vmap():
    agents = [make_state(i, dtype=np.float32) for i in range(3)]
    states = jax.tree.map(lambda *x: jnp.stack(x), *agents)
    obs = jnp.ones((3, OBS_DIM))
    actual = jax.vmap(lambda value_fn, s: value_fn(s))(
        jax.vmap(lambda state: sac.value_fn(state, config=CONFIG))(states), obs
    )
    expected = [
        values_at(agent, s, CONFIG) for agent, s in zip(agents, obs, strict=True)
    ]
    # float32, with products of matrices batched and not.
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_unit_features_bound_the_values_by_the_last_layer():
    config = CONFIG.replace(critic_unit_features=True)
    state = make_state(17, config, dtype=np.float32)
    actual = values_at(state, jnp.full(OBS_DIM, 1e4), config)
    for value, layers in zip(actual[:2], critics_of(state.critics), strict=True):
        kernel, bias = layers[-1]
        # Cauchy-Schwarz with features of norm one, and a rounding of float32.
        assert abs(value - bias[0]) <= np.linalg.norm(kernel) * (1 + 1e-5)
