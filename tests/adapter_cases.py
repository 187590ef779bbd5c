"""Episodes of environments of other libraries, and checks of their error messages."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vagram_jax import envs
from vagram_jax.envs import base, episodes

TESTS = Path(__file__).parent


@functools.partial(jax.jit, static_argnames=("env", "length", "num_steps"))
def rollout(key, start, *, env, length, num_steps):
    """Plays `num_steps` of episodes in lanes.

    Returns the last states, and `(transitions, valid, states before the step)`,
    `[num_steps, lanes]`. Actions go beyond the bounds, where they are clipped.
    """

    def one_step(carry, key):
        def one_lane(key, state):
            key_act, key_step = jax.random.split(key)
            action = jax.random.uniform(key_act, (env.action_size,), minval=-1.2)
            after, transition, valid = episodes.step(
                key_step, state, action, env=env, episode_length=length
            )
            return after, (transition, valid, state.env_state)

        keys = jax.random.split(key, carry.steps.shape[0])
        return jax.vmap(one_lane)(keys, carry)

    return jax.lax.scan(one_step, start, jax.random.split(key, num_steps))


def start(env, lanes, seed=0):
    """Resets episodes in lanes."""
    keys = jax.random.split(jax.random.key(seed), lanes)
    return jax.jit(jax.vmap(functools.partial(episodes.reset, env=env)))(keys)


def assert_refused(name, message, **options):
    """Asserts that `make` fails with one line that names the environment."""
    with pytest.raises(base.EnvError, match=message) as caught:
        envs.make(name, **options)
    text = str(caught.value)
    assert text.startswith(f"env {name}: ")
    assert "\n" not in text
    assert ";" in text


def run_python(code, **settings):
    """Runs code in a new interpreter that can import the package and test modules."""
    path = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | path | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
