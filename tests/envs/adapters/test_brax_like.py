"""The adapter that Brax and Playground share, on a stub with Brax's interface."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

from vagram_jax.envs import base
from vagram_jax.envs.adapters import brax_like


@pytest.mark.parametrize("entry", ["", "state"])
def test_the_environment_gets_raw_keys_and_a_copy_of_its_state(entry):
    stub = probe_envs.BraxStub(as_dict=bool(entry))
    env = brax_like.BraxLikeEnv(stub, "stub", observation=entry, episode_length=7)
    base.check_env(env)
    assert (env.observation_size, env.action_size, env.episode_length) == (2, 2, 7)
    key = jax.random.key(3)
    state = env.reset(key)
    drawn = jax.random.normal(jax.random.key_data(key), (2,))
    np.testing.assert_array_equal(state.obs, drawn)
    after = env.step(state, jnp.ones(2))
    np.testing.assert_array_equal(after.obs, state.obs + 1)
    assert after.reward == after.obs.sum()
    assert (state.metrics["count"], after.metrics["count"]) == (0, 1)


def test_an_observation_that_is_not_finite_ends_the_episode():
    env = brax_like.BraxLikeEnv(probe_envs.BraxStub(), "stub", episode_length=7)
    state = env.step(env.reset(jax.random.key(0)), jnp.array([0.0, 1.0]))
    assert state.done == 0
    for bad in (jnp.nan, jnp.inf):
        assert env.step(state, jnp.array([0.0, bad])).done == 1


def test_an_entry_is_chosen_only_if_the_observation_is_a_dict():
    make = functools.partial(brax_like.BraxLikeEnv, episode_length=7)
    with_dict = probe_envs.BraxStub(as_dict=True)
    with pytest.raises(base.EnvError, match="observation=''; accepted: privileged, st"):
        make(with_dict, "stub")
    with pytest.raises(base.EnvError, match="observation='stat'; accepted"):
        make(with_dict, "stub", observation="stat")
    with pytest.raises(base.EnvError, match="observation='state'; it has only one"):
        make(probe_envs.BraxStub(), "stub", observation="state")
