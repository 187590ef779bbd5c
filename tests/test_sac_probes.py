"""Soft actor-critic learns what is known: tasks of one or two states, in rising order.

Each task is a batch of transitions, so that a failure is the agent's and not the
loop's. All tasks share their shapes and with them one compiled program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_sac
import probe_envs
import pytest

from vagram_jax import sac
from vagram_jax.envs import episodes
from vagram_jax.types import Transition

ROWS, UPDATES = 60, 1000
# Nearly no entropy bonus: values are then sums of rewards. The discount is 0.9.
CONFIG = sac.SACConfig(
    hidden=(16,),
    activation="tanh",
    actor_learning_rate=3e-3,
    critic_learning_rate=1e-2,
    temperature_learning_rate=1e-6,
    initial_temperature=1e-3,
    discount=0.9,
    target_rate=0.2,
)


@jax.jit
def train(key, batch):
    """The agent after many updates on one batch."""
    key_init, key_updates = jax.random.split(key)
    state = sac.init(key_init, obs_dim=1, action_dim=1, config=CONFIG)

    def step(state, key):
        return sac.update(key, state, batch, config=CONFIG)[0], None

    return jax.lax.scan(step, state, jax.random.split(key_updates, UPDATES))[0]


def transitions(reward_of, obs=(0.0,), next_obs=None, terminated=True):
    """Rows that go through the states in turn, with actions spread over [-1, 1]."""
    turn = np.arange(ROWS) % len(obs)
    obs = np.float32(obs)
    action = np.linspace(-1.0, 1.0, ROWS, dtype=np.float32)
    pairs = zip(obs[turn], action, strict=True)
    return Transition(
        obs=obs[turn][:, None],
        action=action[:, None],
        reward=np.float32([reward_of(s, a) for s, a in pairs]),
        next_obs=np.float32(obs if next_obs is None else next_obs)[turn][:, None],
        terminated=np.broadcast_to(terminated, len(obs))[turn],
        truncated=np.zeros(ROWS, bool),
    )


def q_values(state, pairs):
    """Both critics at pairs of a state and an action, `[2, pairs]`."""
    inner = state.critics["params"]["mlp"]
    critics = [
        [tuple(inner[f"Dense_{i}"][n][k] for n in ("kernel", "bias")) for i in (0, 1)]
        for k in (0, 1)
    ]
    return [
        [oracles_sac.q_value(critic, [s], [a], CONFIG.activation) for s, a in pairs]
        for critic in critics
    ]


def values(state, observations):
    """What `value_fn` says of states, `[states, 4]`."""
    value_fn = sac.value_fn(state, config=CONFIG)
    return jax.vmap(value_fn)(jnp.float32(observations)[:, None])


@pytest.fixture(scope="module")
def trained():
    """Agents by the name of their probe."""
    batches = {
        "constant": transitions(lambda s, a: 1.0),
        "by state": transitions(lambda s, a: s, obs=(-1.0, 1.0)),
        "delayed": transitions(
            lambda s, a: s,
            obs=(0.0, 1.0),
            next_obs=(1.0, 0.0),
            terminated=(False, True),
        ),
        "by action": transitions(lambda s, a: 1.0 - (a - 0.5) ** 2),
        "by both": transitions(lambda s, a: 1.0 - (a - s) ** 2, obs=(-0.5, 0.5)),
    }
    return {name: train(jax.random.key(0), batch) for name, batch in batches.items()}


# How near a network of 16 units comes: a twentieth of the size of the rewards.
NEAR = 0.05


def test_update_learns_a_constant_reward(trained):
    actual = q_values(trained["constant"], [(0.0, -0.9), (0.0, 0.0), (0.0, 0.9)])
    np.testing.assert_allclose(actual, np.ones((2, 3)), atol=NEAR)


def test_update_learns_what_depends_on_the_state(trained):
    actual = q_values(trained["by state"], [(-1.0, 0.3), (1.0, 0.3)])
    np.testing.assert_allclose(actual, [[-1.0, 1.0]] * 2, atol=NEAR)


def test_update_passes_a_later_reward_back_with_the_discount(trained):
    actual = q_values(trained["delayed"], [(0.0, 0.3), (1.0, 0.3)])
    np.testing.assert_allclose(actual, [[0.9, 1.0]] * 2, atol=NEAR)


def test_update_learns_what_depends_on_the_action(trained):
    actual = q_values(trained["by action"], [(0.0, -0.5), (0.0, 0.5)])
    np.testing.assert_allclose(actual, [[0.0, 1.0]] * 2, atol=NEAR)


def test_update_finds_the_best_action(trained):
    agent = trained["by action"]
    actual = sac.act_mean(agent, jnp.zeros((1, 1)), config=CONFIG)
    # A reward that is near its maximum leaves the action free by the root of NEAR.
    np.testing.assert_allclose(actual, [[0.5]], atol=0.2)


def test_update_finds_the_best_action_of_each_state(trained):
    agent = trained["by both"]
    actual = sac.act_mean(agent, jnp.array([[-0.5], [0.5]]), config=CONFIG)
    np.testing.assert_allclose(actual, [[-0.5], [0.5]], atol=0.2)


def test_value_fn_is_the_value_of_the_best_action(trained):
    actual = values(trained["by both"], [-0.5, 0.5])
    np.testing.assert_allclose(actual, np.ones((2, 4)), atol=NEAR)


@functools.cache
def salary(ends_after):
    """An agent on episodes of five steps that pay one each, as they are stored."""
    env = probe_envs.Salary(ends_after=ends_after)

    def step(state, key):
        key_act, key_env = jax.random.split(key)
        action = jax.random.uniform(key_act, (1,), minval=-1.0)
        state, transition, _ = episodes.step(
            key_env, state, action, env=env, episode_length=5
        )
        return state, transition

    start = episodes.reset(jax.random.key(1), env=env)
    keys = jax.random.split(jax.random.key(2), ROWS)
    batch = jax.lax.scan(step, start, keys)[1]
    ends = batch.terminated if ends_after else batch.truncated
    assert ends.sum() == ROWS // 5
    return train(jax.random.key(3), batch)


def test_update_looks_beyond_a_time_limit():
    # 1 / (1 - 0.9), not the 4.1 of an end after five steps. What is left to learn falls
    # by the factor e in 1 / (0.2 * (1 - 0.9)) = 50 updates; the rest is Adam's jitter.
    np.testing.assert_allclose(values(salary(0), [0.0]), [[10.0] * 4], rtol=0.02)


def test_update_looks_no_further_than_a_termination():
    actual = values(salary(5), [0.0, 0.2, 0.4, 0.6, 0.8])
    left = np.array([5, 4, 3, 2, 1])
    expected = (1.0 - 0.9**left) / (1.0 - 0.9)
    # How near a network of 16 units comes, beside values up to 4.1.
    np.testing.assert_allclose(actual, np.repeat(expected[:, None], 4, 1), atol=0.12)
