"""Returns of a policy: against a loop over the steps of an episode."""

# ruff: noqa: D102  (the methods are the protocol's, described there)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

from vagram_jax import envs, evaluate

EPISODES, LENGTH = 8, 6


class Decay:
    """A state that halves and is pushed; the reward is the state before the step.

    So an episode of one step has its start as its return, and a start gives all of an
    episode. It ends for good below `end`.
    """

    observation_size = 1
    action_size = 1

    def __init__(self, end=-np.inf, episode_length=LENGTH):
        self._end, self.episode_length = end, episode_length

    def reset(self, key):
        start = jax.random.uniform(key, (1,), minval=1.0, maxval=9.0)
        return envs.State(
            pipeline_state=(),
            obs=start,
            reward=jnp.zeros(()),
            done=jnp.zeros(()),
            metrics={},
            info={},
        )

    def step(self, state, action):
        obs = 0.5 * state.obs + action
        done = jnp.float32(obs[0] < self._end)
        return state.replace(obs=obs, reward=state.obs[0], done=done)


def push(key, obs):
    del key
    return 0.1 * jnp.tanh(obs)


def counter(**options):
    """An environment that pays 1 for each step, and a limit of steps."""
    env = probe_envs.Counter(**options)
    env.episode_length = LENGTH
    return env


def noise(key, obs):
    return jax.random.uniform(key, obs.shape, minval=-1.0)


@functools.partial(jax.jit, static_argnames=("act", "env", "num_episodes"))
def returns(act, env, *, seed=0, num_episodes=EPISODES):
    key = jax.random.key(seed)
    return evaluate.returns(key, act, env=env, num_episodes=num_episodes)[:2]


@pytest.mark.parametrize("end", [-np.inf, 0.5])
def test_returns_equal_a_loop_over_the_steps(end):
    starts, _ = returns(push, Decay(episode_length=1))
    actual, lengths = returns(push, Decay(end))
    for start, total, length in zip(starts, actual, lengths, strict=True):
        obs, expected, steps = float(start), 0.0, 0
        while steps < LENGTH and (steps == 0 or obs >= end):
            expected, steps = expected + obs, steps + 1
            obs = 0.5 * obs + 0.1 * np.tanh(obs)
        np.testing.assert_allclose(total, expected, rtol=1e-5)  # sums in float32
        assert length == steps
    # Otherwise one of the two ends would not have been tried.
    assert (len(np.unique(lengths)) > 1) == (end == 0.5)


def test_returns_start_each_episode_in_a_different_state():
    starts, _ = returns(push, Decay(episode_length=1))
    assert len(np.unique(starts)) == EPISODES


def test_returns_depend_on_the_key():
    first, _ = returns(push, Decay(), seed=0)
    second, _ = returns(push, Decay(), seed=1)
    assert not set(np.asarray(first)) & set(np.asarray(second))


def test_returns_give_the_policy_a_new_key_at_each_step():
    seen = []

    def act(key, obs):
        action = noise(key, obs)
        jax.debug.callback(lambda a: seen.append(float(a[0])), action)
        return action

    # JAX's own check for reused keys can't be asked: it refuses any loop over keys that
    # were split under vmap.
    jax.block_until_ready(returns(act, Decay()))
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == EPISODES * LENGTH


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (counter(), LENGTH),  # the limit cuts
        (counter(ends_after=4), 4),
        (counter(ends_after=LENGTH), LENGTH),
        (counter(ends_after=1), 1),
    ],
)
def test_returns_count_the_steps_until_an_end(env, expected):
    actual, lengths = returns(noise, env, num_episodes=2)
    # One for each step: what comes after the end adds nothing.
    np.testing.assert_array_equal(actual, np.full(2, expected))
    np.testing.assert_array_equal(lengths, np.full(2, expected))


@pytest.mark.parametrize(
    ("env", "length"),
    [
        (counter(nan_at=3, nan_in="reward"), 2),
        (counter(nan_at=3, nan_in="obs"), 2),
        (counter(nan_at=1, nan_in="reward"), 0),
    ],
)
def test_an_episode_that_is_not_finite_has_no_return(env, length):
    actual, lengths = returns(noise, env, num_episodes=2)
    assert np.isnan(actual).all()
    np.testing.assert_array_equal(lengths, [length, length])


def test_returns_of_64_bit_rewards_have_64_bits(x64):
    actual, _ = returns(push, Decay(), num_episodes=2)
    assert actual.dtype == jnp.float64


def test_returns_accept_a_policy_that_is_a_pytree():
    policy = jax.tree_util.Partial(lambda gain, key, obs: gain * obs, jnp.float32(0.25))
    run = jax.jit(
        lambda act: evaluate.returns(
            jax.random.key(0), act, env=Decay(episode_length=2), num_episodes=2
        )
    )
    starts, _ = returns(push, Decay(episode_length=1), num_episodes=2)
    # The state before each step: the start, then half of it and a quarter of it.
    np.testing.assert_allclose(run(policy)[0], 1.75 * starts, rtol=1e-6)  # float32


def test_returns_stop_playing_when_the_last_episode_has_ended():
    played = []

    class Counted(Decay):
        def step(self, state, action):
            jax.debug.callback(lambda: played.append(1))
            return super().step(state, action)

    _, lengths = returns(push, Counted(end=1.0, episode_length=500))
    jax.effects_barrier()
    assert max(lengths) < 10
    assert 0 < len(played) <= EPISODES * max(lengths)


def test_transitions_are_the_steps_of_the_episodes_of_returns():
    key, env = jax.random.key(3), Decay(0.5)
    options = {"env": env, "num_episodes": EPISODES}
    rows, mask = jax.jit(lambda: evaluate.transitions(key, push, **options))()
    totals, lengths, _ = jax.jit(lambda: evaluate.returns(key, push, **options))()
    assert rows.obs.shape == (EPISODES, LENGTH, 1)
    np.testing.assert_array_equal(mask.sum(axis=1), lengths)
    assert len(np.unique(lengths)) > 1
    summed = np.where(mask, rows.reward, 0.0).sum(axis=1)
    np.testing.assert_allclose(summed, totals, rtol=1e-5)  # sums in float32
    both = mask[:, 1:]
    np.testing.assert_array_equal(rows.obs[:, 1:][both], rows.next_obs[:, :-1][both])
    for flags, length in zip(rows.terminated, lengths.tolist(), strict=True):
        assert flags[:length].tolist() == [False] * (length - 1) + [length < LENGTH]


def test_transitions_leave_out_a_step_that_is_not_finite():
    env = counter(nan_at=3, nan_in="reward")
    _, mask = evaluate.transitions(jax.random.key(0), noise, env=env, num_episodes=2)
    np.testing.assert_array_equal(mask.sum(axis=1), [2, 2])


class Measured(Decay):
    """Reports its state and twice its state."""

    def reset(self, key):
        state = super().reset(key)
        return state.replace(metrics=self._metrics(state.obs))

    def step(self, state, action):
        after = super().step(state, action)
        return after.replace(metrics=self._metrics(after.obs))

    def _metrics(self, obs):
        return {"place": obs[0], "pair": jnp.stack([obs[0], 2 * obs[0]])}


def test_metrics_of_an_environment_are_summed_over_the_steps_of_an_episode():
    env = Measured(0.5)
    key, options = jax.random.key(3), {"env": env, "num_episodes": EPISODES}
    _, _, metrics = jax.jit(lambda: evaluate.returns(key, push, **options))()
    rows, mask = jax.jit(lambda: evaluate.transitions(key, push, **options))()
    assert sorted(metrics) == ["env/pair", "env/place"]
    # The last step of an episode counts, although a reset follows it.
    expected = np.where(mask, rows.next_obs[..., 0], 0.0).sum(axis=1)
    np.testing.assert_allclose(metrics["env/place"], expected, rtol=1e-5)
    pair = np.stack([expected, 2 * expected], axis=1)
    np.testing.assert_allclose(metrics["env/pair"], pair, rtol=1e-5)


def test_only_the_metrics_that_an_environment_names_are_recorded():
    env = Measured()
    for names, recorded in (((), []), (("place",), ["env/place"])):
        env.recorded_metrics = names
        shapes = jax.eval_shape(
            lambda: evaluate.returns(jax.random.key(0), push, env=env, num_episodes=1)
        )
        assert sorted(shapes[2]) == recorded
