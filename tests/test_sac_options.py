"""Options of the agent: normalized observations, LayerNorm, many critics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import oracles_sac
import pytest

from vagram_jax import networks, sac
from vagram_jax.config import ConfigError
from vagram_jax.types import Transition

# float64 arithmetic in another order.
EXACT = 1e-10
OBS_DIM, ACTION_DIM, ROWS = 3, 2, 6
PLAIN = sac.SACConfig(hidden=(4,), actor_learning_rate=1e-2, critic_learning_rate=1e-2)
NORMALIZED = PLAIN.replace(normalize_obs=True)
ENSEMBLE = PLAIN.replace(num_critics=5, min_critics=2)
MEAN, STD = np.array([10.0, -3.0, 0.5]), np.array([4.0, 0.1, 1.0])


@functools.partial(jax.jit, static_argnames="config")
def new_agent(config):
    return sac.init(
        jax.random.key(0), obs_dim=OBS_DIM, action_dim=ACTION_DIM, config=config
    )


def make_batch(seed=0):
    rows = oracles.random_batch(seed, (ROWS,), OBS_DIM, ACTION_DIM)
    return rows, Transition(**rows)


def in_units(batch):
    """The batch whose normalized observations are those of `batch`."""
    return batch.replace(
        obs=batch.obs * STD + MEAN, next_obs=batch.next_obs * STD + MEAN
    )


def layers_of(params, *index):
    inner = params["params"]["mlp"]
    return [
        tuple(np.asarray(inner[f"Dense_{i}"][n])[index] for n in ("kernel", "bias"))
        for i in range(2)
    ]


def agents(config=NORMALIZED):
    """An agent that normalizes, and the same one without normalization."""
    agent = new_agent(PLAIN)
    return agent.replace(obs_mean=jnp.asarray(MEAN), obs_std=jnp.asarray(STD)), agent


def test_fit_normalizer_takes_the_moments_of_the_rows_that_count(x64):
    obs = np.random.default_rng(1).normal(MEAN, STD, size=(50, OBS_DIM))
    where = np.arange(50) % 3 > 0
    actual = sac.fit_normalizer(new_agent(PLAIN), obs, where, config=NORMALIZED)
    mean, std = oracles.moments(obs, where)
    np.testing.assert_allclose(actual.obs_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(actual.obs_std, std, rtol=1e-6)


def test_fit_normalizer_changes_nothing_unless_the_config_asks_for_it():
    agent = new_agent(PLAIN)
    obs, where = np.ones((4, OBS_DIM)), np.ones(4, bool)
    assert sac.fit_normalizer(agent, obs, where, config=PLAIN) is agent


@pytest.mark.usefixtures("x64")
def test_a_normalizing_agent_acts_as_the_plain_one_on_normalized_observations():
    normalizing, plain = agents()
    obs, key = make_batch()[1].obs, jax.random.key(1)
    for config, agent, seen in (
        (NORMALIZED, normalizing, obs * STD + MEAN),
        (PLAIN, plain, obs),
    ):
        actual = [
            sac.act(key, agent, seen, config=config),
            sac.act_mean(agent, seen, config=config),
            sac.value_fn(agent, config=config)(seen[0]),
        ]
        if agent is normalizing:
            expected = actual
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=EXACT)


@pytest.mark.usefixtures("x64")
def test_a_normalizing_agent_learns_as_the_plain_one_on_normalized_observations():
    normalizing, plain = agents()
    batch, key = make_batch()[1], jax.random.key(2)
    update = jax.jit(sac.update)
    new, metrics = update(key, normalizing, in_units(batch), config=NORMALIZED)
    expected, expected_metrics = update(key, plain, batch, config=PLAIN)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=EXACT)
    for part in ("actor", "critics", "target_critics"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
            getattr(new, part),
            getattr(expected, part),
        )
    np.testing.assert_array_equal(new.obs_mean, MEAN)


def test_value_gradients_are_in_the_units_of_the_data(x64):
    normalizing, plain = agents()
    obs = make_batch()[1].obs[0]
    actual = jax.jacrev(sac.value_fn(normalizing, config=NORMALIZED))(obs * STD + MEAN)
    expected = jax.jacrev(sac.value_fn(plain, config=PLAIN))(obs)
    np.testing.assert_allclose(actual, expected / STD, rtol=EXACT)


def test_layer_norm_equals_the_oracle(x64):
    module = networks.MLP(hidden=(4, 3), out_dim=2, activation="tanh", layer_norm=True)
    inputs = np.random.default_rng(3).normal(size=(5, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(4)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    layers, x = params["params"], inputs
    for i in range(2):
        x = x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"]
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        x = x * layers[f"LayerNorm_{i}"]["scale"] + layers[f"LayerNorm_{i}"]["bias"]
        x = np.tanh(x)
    expected = x @ layers["Dense_2"]["kernel"] + layers["Dense_2"]["bias"]
    np.testing.assert_allclose(module.apply(params, inputs), expected, rtol=1e-6)


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_layer_norm_and_unit_features_are_chosen_for_actor_and_critics_apart(part):
    config = PLAIN.replace(**{f"{part}_layer_norm": True})
    agent = new_agent(config)
    with_norm = {
        name
        for name, params in (("actor", agent.actor), ("critic", agent.critics))
        if "LayerNorm_0" in params["params"]["mlp"]
    }
    assert with_norm == {part}
    scaled = PLAIN.replace(**{f"{part}_unit_features": True})
    far = jnp.full(OBS_DIM, 1e4)
    agent = new_agent(PLAIN)
    mean = sac.act_mean(agent, far, config=scaled)
    bounded = np.abs(mean) < 0.99, np.abs(sac.value_fn(agent, config=scaled)(far)) < 10
    assert [bool(np.all(x)) for x in bounded] == [part == "actor", part == "critic"]


def test_the_target_is_the_minimum_over_the_subset(x64):
    agent, (rows, batch) = new_agent(ENSEMBLE), make_batch()
    noise = np.random.default_rng(5).normal(size=(ROWS, ACTION_DIM))
    subset = np.array([3, 1])
    actual = sac.bellman_target(noise, agent, batch, config=ENSEMBLE, subset=subset)
    expected = oracles_sac.bellman_target(
        layers_of(agent.actor),
        [layers_of(agent.target_critics, index) for index in subset],
        ENSEMBLE.initial_temperature,
        rows,
        noise,
        ENSEMBLE.discount,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_update_draws_another_subset_for_each_key(key_reuse):
    # Each target critic is a constant of its own, so that the loss names the subset.
    agent, (_, batch) = new_agent(ENSEMBLE), make_batch()
    batch = batch.replace(reward=np.zeros(ROWS), terminated=np.zeros(ROWS, bool))
    flat = jax.tree.map(jnp.zeros_like, (agent.critics, agent.target_critics))
    last = flat[1]["params"]["mlp"]["Dense_1"]
    last["bias"] = 10.0 ** jnp.arange(5.0)[:, None]
    agent = agent.replace(
        critics=flat[0], target_critics=flat[1], log_temperature=jnp.float32(-1e9)
    )
    update = jax.jit(sac.update)
    smallest = set()
    for seed in range(40):
        _, metrics = update(jax.random.key(seed), agent, batch, config=ENSEMBLE)
        target = np.sqrt(metrics["sac/critic_loss"] / 5) / ENSEMBLE.discount
        smallest.add(round(float(np.log10(target)), 3))
    # The larger of two critics is never the target; each other one is the smaller.
    assert smallest == {0.0, 1.0, 2.0, 3.0}


def test_the_actor_of_a_critic_ensemble_maximizes_their_mean(x64):
    agent, (rows, batch) = new_agent(ENSEMBLE), make_batch()
    key = jax.random.key(6)
    new, metrics = jax.jit(sac.update)(key, agent, batch, config=ENSEMBLE)
    _, noise = jax.random.normal(jax.random.split(key)[0], (2, ROWS, ACTION_DIM))
    losses = [
        oracles_sac.actor_loss(
            layers_of(agent.actor),
            [layers_of(new.critics, index)],
            ENSEMBLE.initial_temperature,
            rows,
            noise,
        )[0]
        for index in range(5)
    ]
    np.testing.assert_allclose(metrics["sac/actor_loss"], np.mean(losses), rtol=1e-5)


def test_value_fn_returns_every_critic_and_target(x64):
    value_fn = sac.value_fn(new_agent(ENSEMBLE), config=ENSEMBLE)
    assert value_fn(jnp.ones(OBS_DIM)).shape == (10,)


def test_check_refuses_a_minimum_over_more_critics_than_there_are():
    with pytest.raises(ConfigError, match=r"sac\.min_critics=3; at most sac\.num_"):
        sac.check(PLAIN.replace(min_critics=3))
