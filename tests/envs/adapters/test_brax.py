"""Brax's environments compute what Brax computes."""

from __future__ import annotations

import adapter_cases as cases
import jax
import numpy as np
import pytest

from vagram_jax import envs

brax = pytest.importorskip("brax.envs")


def test_steps_equal_brax_and_episodes_have_different_starts():
    env = envs.make("brax:inverted_pendulum", physics="spring")
    assert (env.episode_length, env.termination) == (1000, None)
    _, (data, valid, states) = cases.rollout(
        jax.random.key(1), cases.start(env, 3), env=env, length=12, num_steps=60
    )
    assert valid.all()
    raw = brax.get_environment("inverted_pendulum", backend="spring")
    inner = states.pipeline_state
    after = jax.jit(jax.vmap(jax.vmap(raw.step)))(inner, data.action)
    close = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(data.obs, inner.obs, **close)
    np.testing.assert_allclose(data.next_obs, after.obs, **close)
    np.testing.assert_allclose(data.reward, after.reward, **close)
    np.testing.assert_array_equal(data.terminated, after.done > 0)
    assert data.terminated.any()
    assert data.truncated.any()
    ended = data.terminated | data.truncated
    starts = states.obs[1:][ended[:-1]]
    assert len(np.unique(starts, axis=0)) == len(starts) > 3
    assert np.abs(starts - data.next_obs[:-1][ended[:-1]]).max(-1).min() > 1e-3


@pytest.mark.parametrize(
    ("name", "physics", "message"),
    [
        ("hoper", "auto", "no such environment; near: hopper"),
        ("Hopper", "auto", "near: hopper"),
        ("zzz", "auto", "known: ant, fast, halfcheetah, hopper, humanoid"),
        ("hopper", "c", "physics='c'; accepted: auto, generalized, spring, positional"),
        ("swimmer", "mjx", "physics='mjx' raised ValueError: Unsupported backend"),
    ],
)
def test_make_refuses_in_one_line(name, physics, message):
    cases.assert_refused(f"brax:{name}", message, physics=physics)
