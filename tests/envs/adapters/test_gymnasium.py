"""Gymnasium's environments compute what Gymnasium computes, as pure functions."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import re
import types

import adapter_cases as cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax import envs, user_code
from vagram_jax.envs import base
from vagram_jax.envs.adapters import gymnasium as adapter

gymnasium = pytest.importorskip("gymnasium")
toys = pytest.importorskip("toy_gymnasium")


def scale(action, space):
    """Scales an action in [-1, 1] as Gymnasium's own wrappers do."""
    action = np.clip(np.float64(action), -1, 1)
    low, high = np.float64(space.low), np.float64(space.high)
    return np.float32(low + (high - low) * (action + 1) / 2)


@functools.cache
def walk():
    """An environment that terminates by itself; made once, so that it compiles once."""
    return envs.make("gymnasium:ToyLimit-v0")


def play(env, key, start, length=20, num_steps=15):
    run = cases.rollout(key, start, env=env, length=length, num_steps=num_steps)
    return jax.block_until_ready(run)  # Some tests count the steps.


@pytest.mark.parametrize(
    ("name", "num_steps", "end"),
    [
        ("Pendulum-v1", 210, "truncated"),
        ("MountainCarContinuous-v0", 40, None),
        ("InvertedPendulum-v5", 60, "terminated"),
        ("ToyLimit-v0", 60, "terminated"),
        ("ToyTruncated-v0", 30, "truncated"),
    ],
)
def test_episodes_equal_gymnasiums(name, num_steps, end):
    env = envs.make(f"gymnasium:{name}")
    first = cases.start(env, 3)
    run = play(env, jax.random.key(1), first, env.episode_length, num_steps)
    data, valid, states = jax.tree.map(np.asarray, run[1])
    assert valid.all()
    history, expected = states.pipeline_state, []
    plain = gymnasium.make(name, disable_env_checker=True)
    for lane, t in np.ndindex(3, num_steps):
        if history.steps[t, lane] == 0:
            obs, _ = plain.reset(seed=int(history.seed[t, lane]))
        before = np.copy(obs)  # The toys change their observation in place.
        action = scale(data.action[t, lane], plain.action_space)
        obs, reward, terminated, truncated, _ = plain.step(action)
        truncated = truncated and not terminated
        expected.append((before, np.copy(obs), reward, terminated, truncated))
    found = (data.obs, data.next_obs, data.reward, data.terminated, data.truncated)
    for actual, wanted in zip(found, zip(*expected, strict=True), strict=True):
        actual = actual.swapaxes(0, 1).reshape(3 * num_steps, *actual.shape[2:])
        np.testing.assert_array_equal(actual, np.stack(wanted).astype(actual.dtype))
    assert not end or getattr(data, end).any()
    num_episodes = 3 + (data.terminated | data.truncated)[:-1].sum()
    assert len(np.unique(history.seed)) == num_episodes


def test_observations_have_double_precision_if_jax_does(x64):
    env = envs.make("gymnasium:InvertedPendulum-v5")
    state = env.reset(jax.random.key(0))
    plain = gymnasium.make("InvertedPendulum-v5")
    obs, _ = plain.reset(seed=int(state.pipeline_state.seed))
    np.testing.assert_array_equal(state.obs, obs)
    after = jax.jit(env.step)(state, jnp.array([0.5]))
    np.testing.assert_array_equal(after.obs, plain.step(np.float32([1.5]))[0])


def test_a_saved_state_continues_in_another_environment():
    env = walk()
    middle, _ = play(env, jax.random.key(1), cases.start(env, 3))
    saved = jax.device_get(middle)
    assert (saved.steps > 0).any()
    expected = play(env, jax.random.key(2), middle)
    other = envs.make("gymnasium:ToyLimit-v0")
    before = toys.Walk.steps
    chex.assert_trees_all_equal(play(other, jax.random.key(2), saved), expected)
    repeated = toys.Walk.steps - before - 3 * 15
    assert repeated == saved.steps.sum()  # each past step once
    # In the old environment the same call repeats steps, too, with the same result.
    chex.assert_trees_all_equal(play(env, jax.random.key(2), middle), expected)


def test_several_states_continue_from_one():
    env, plain = walk(), gymnasium.make("ToyLong-v0", disable_env_checker=True)
    step = jax.jit(jax.vmap(env.step, in_axes=(None, 0)))
    start = env.reset(jax.random.key(0))
    actions = jnp.array([[0.1], [-0.1], [0.1]])
    for _ in range(2):  # The second time, no environment has the history of the start.
        states = step(start, actions)
        for lane, action in enumerate(actions):
            plain.reset(seed=int(start.pipeline_state.seed))
            obs = plain.step(scale(action, plain.action_space))[0]
            np.testing.assert_array_equal(states.obs[lane], np.float32(obs))
    # Two states have the same history, and each can continue from it.
    step_each, built = jax.jit(jax.vmap(env.step)), toys.Walk.built
    after = step_each(states, 2 * actions)
    for _ in range(9):
        step_each(states, 2 * actions)
    assert toys.Walk.built - built <= 3
    np.testing.assert_array_equal(after.obs[0], after.obs[2])
    assert after.obs[0, 0] != after.obs[1, 0]


def test_lanes_beyond_the_capacity_repeat_steps_only_at_first(monkeypatch):
    monkeypatch.setattr(adapter, "_FIRST_CAPACITY", 2)
    env = envs.make("gymnasium:ToyLong-v0")
    run = functools.partial(play, length=1000, num_steps=12)
    built, before = toys.Walk.built, toys.Walk.steps
    middle, (few, _, _) = run(env, jax.random.key(1), cases.start(env, 8))
    assert 0 < toys.Walk.steps - before - 8 * 12 < 8 * 3
    assert toys.Walk.built - built <= 8 + 2
    before = toys.Walk.steps
    _, (more, _, _) = run(env, jax.random.key(2), middle)
    assert toys.Walk.steps - before <= 8 * 12 + 24
    monkeypatch.undo()
    env = envs.make("gymnasium:ToyLong-v0")
    middle, (few_again, _, _) = run(env, jax.random.key(1), cases.start(env, 8))
    _, (more_again, _, _) = run(env, jax.random.key(2), middle)
    chex.assert_trees_all_equal((few, more), (few_again, more_again))


@pytest.mark.parametrize("length", [20, 3])
def test_many_episodes_need_few_environments(length):
    env = walk()  # Its episodes end by themselves, or are truncated by the length.
    gc.collect()
    alive, built = len(toys.Walk.alive), toys.Walk.built
    start = cases.start(env, 3)
    _, (data, _, _) = play(env, jax.random.key(1), start, length, num_steps=150)
    assert (data.terminated | data.truncated).sum() > 50
    assert toys.Walk.built - built <= 17
    assert len(toys.Walk.alive) - alive <= 17


def test_nothing_changes_after_the_end_of_an_episode():
    env = envs.make("gymnasium:ToyTruncated-v0")
    step, state = jax.jit(env.step), env.reset(jax.random.key(0))
    for count in range(1, 8):
        state = step(state, jnp.zeros(1))
        assert state.done == state.info["truncation"] == (count == 7)
    num_steps = toys.Walk.steps
    after = step(state, jnp.ones(1))
    chex.assert_trees_all_equal(after, state.replace(reward=jnp.zeros(())))
    assert state.reward != 0
    assert toys.Walk.steps == num_steps


def test_a_given_length_truncates_unless_the_environment_terminates():
    def ends(name, num_steps, **options):
        make = functools.partial(gymnasium.make, name, disable_env_checker=True)
        env = adapter.GymnasiumEnv(make, "x", **options)
        state, found = env.reset(jax.random.key(0)), []
        for _ in range(num_steps):
            state = env.step(state, jnp.zeros(env.action_size))
            found.append((float(state.done), float(state.info["truncation"])))
        return found

    assert ends("ToyEndless-v0", 3, episode_length=3) == [(0, 0), (0, 0), (1, 1)]
    assert ends("ToyBadBoth-v0", 2) == [(0, 0), (1, 0)]
    assert ends("ToyBadBoth-v0", 2, episode_length=2) == [(0, 0), (1, 0)]


def test_numbers_that_are_not_finite_are_returned_and_end_the_episode():
    for name, part in [("NanObs", "obs"), ("NanReward", "reward")]:
        env = envs.make(f"gymnasium:ToyBad{name}-v0")
        state = env.step(env.reset(jax.random.key(0)), jnp.zeros(1))
        assert base.all_finite(state.obs, state.reward)
        state = env.step(state, jnp.zeros(1))
        assert jnp.isnan(getattr(state, part)).all()
        assert state.done == 1
    env = walk()
    state, num_steps = env.reset(jax.random.key(0)), toys.Walk.steps
    for bad in (jnp.nan, jnp.inf):
        after = env.step(state, jnp.array([bad]))
        assert jnp.isnan(after.obs).all()
        assert jnp.isnan(after.reward)
        assert after.done == 1
    assert toys.Walk.steps == num_steps


def test_an_exception_in_a_step_names_the_environment():
    env = envs.make("gymnasium:ToyBadRaise-v0")
    state, step = env.reset(jax.random.key(0)), jax.jit(env.step)
    for _ in range(4):
        state = step(state, jnp.zeros(1))
    # JAX raises a RuntimeError if the program ran in the background.
    with pytest.raises((RuntimeError, ValueError)) as caught:
        jax.block_until_ready(step(state, jnp.zeros(1)))
    expected = (
        r"EnvError: env gymnasium:ToyBadRaise-v0: step raised ZeroDivisionError: "
        r"the leg \(.*toy_gymnasium\.py:\d+\); repair it$"
    )
    assert re.search(expected, str(caught.value).splitlines()[-1])
    assert re.match("env gymnasium:ToyBadRaise", user_code.reason(caught.value))
    jax.block_until_ready(step(env.reset(jax.random.key(1)), jnp.zeros(1)))


def test_threads_take_turns_with_the_environments():
    env = envs.make("gymnasium:ToySlow-v0")
    starts = [cases.start(env, 3, seed) for seed in range(4)]
    keys = list(jax.random.split(jax.random.key(5), 4))

    def run(key, start):
        return jax.device_get(play(env, key, start))

    alone = list(map(run, keys, starts))
    toys.Walk.most_inside = 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, keys, starts))
    chex.assert_trees_all_equal(together, alone)
    assert toys.Walk.most_inside == 1


def test_make_imports_the_module_that_registers(tmp_path, monkeypatch):
    text = 'import toy_gymnasium as t\nt._register("Imported")\n'
    (tmp_path / "registering.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert envs.make("gymnasium:registering:Imported-v0").episode_length == 20


ERRORS = {
    "Hoper-v5": "NameNotFound.*; near: Hopper-v5, Hopper-v",
    "hopper-v5": "near: Hopper-v5",
    "Hopper-v77": "VersionNotFound.*; near: Hopper-v5",
    "Nowhere/Hopper-v5": "NamespaceNotFound: Namespace Nowhere not found",
    "no_such_module:X-v0": "ModuleNotFoundError: No module named 'no_such_module'",
    "CartPole-v1": r"its action space is Discrete of shape \(\); .* continuous",
    "ToyDiscrete-v0": "its action space is Discrete",
    "ToyInteger-v0": "its actions are int32; floats",
    "ToyUnbounded-v0": "bounds of its action space are not finite",
    "ToyDict-v0": "its observation space is Dict of .*FlattenObservation",
    "ToyPixels-v0": r"observation space is Box of shape \(3, 3\); .*FlattenObservation",
    "ToyEndless-v0": "max_episode_steps=None; .*; register it with one",
    "ToyRandomResetNoise-v0": "two episodes from one seed differ",
    "ToyRandomInstanceNoise-v0": "two episodes from one seed differ",
    "ToyRandomResetCount-v0": "two episodes from one seed differ",
    "ToyBadShape-v0": r"trial episode raised the observation has shape \(2,\); \(3,\)",
}


@pytest.mark.parametrize("name", ERRORS)
def test_make_refuses_in_one_line(name):
    cases.assert_refused(f"gymnasium:{name}", ERRORS[name])


def test_make_refuses_options():
    for option, value in [("observation", "x"), ("physics", "mjx")]:
        message = f"{option}='{value}'"
        cases.assert_refused("gymnasium:Pendulum-v1", message, **{option: value})


def test_make_needs_jax_on_a_cpu(monkeypatch):
    config = types.SimpleNamespace(jax_platforms="cuda")
    monkeypatch.setattr(adapter.jax, "config", config)
    with pytest.raises(base.EnvError, match="set JAX_PLATFORMS=cuda,cpu"):
        adapter.make("Pendulum-v1")
