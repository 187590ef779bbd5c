"""Programs of several SAC updates and of several fit steps, for measuring their speed.

The widths and the batch are those that MBPO and the paper use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import measure
from vagram_jax import fit, losses, replay, sac
from vagram_jax.dynamics import DynamicsConfig
from vagram_jax.fit import FitConfig
from vagram_jax.types import Transition

STEPS = 10
"""The number of updates of a program."""

BATCH = 256
"""Rows of a batch, of an ensemble for each member."""

DYNAMICS = DynamicsConfig(hidden=(200,) * 4, num_members=7, head="deterministic")
"""The ensemble."""

SAC = sac.SACConfig(hidden=(256, 256))
"""The agent."""

HALFCHEETAH = {"obs_dim": 17, "action_dim": 6}
"""The sizes of HalfCheetah and Walker2d."""

HOPPER = {"obs_dim": 11, "action_dim": 3}
"""The sizes of Hopper."""


class Steps(NamedTuple):
    """A program of `STEPS` updates or fit steps.

    Attributes:
      call: runs the program.
      products: runs the matrix products of one step, and nothing else.
      flops: floating-point operations of the matrix products of all steps.
    """

    call: Callable[[], Any]
    products: Callable[[], Any]
    flops: float


def sac_steps(
    config: sac.SACConfig = SAC, sizes: dict[str, int] = HALFCHEETAH
) -> Steps:
    """Returns a program of SAC updates."""
    state = sac.init(jax.random.key(0), **sizes, config=config)
    batches = transitions((STEPS, BATCH), sizes)
    keys = jax.random.split(jax.random.key(1), STEPS)

    def steps(state, keys, batches):
        return jax.lax.scan(
            lambda s, x: sac.update(x[0], s, x[1], config=config),
            state,
            (keys, batches),
        )

    return _steps(steps, state, keys, batches)


def fit_steps(
    name: str, model: DynamicsConfig = DYNAMICS, sizes: dict[str, int] = HALFCHEETAH
) -> Steps:
    """Returns a program of fit steps.

    The weights of the loss are prepared, as in training.
    """
    loss, config = losses.get(name), FitConfig()
    state = fit.init(jax.random.key(0), **sizes, dynamics_config=model, config=config)
    data = transitions((4096,), sizes)
    agent = sac.init(jax.random.key(1), **sizes, config=SAC)
    value_fn = sac.value_fn(agent, config=SAC)
    weights = loss.prepare(data, value_fn) if loss.prepare else None
    shape = (STEPS, DYNAMICS.num_members, BATCH)
    rows = jax.random.randint(jax.random.key(2), shape, 0, 4096)

    def step(state, rows):
        return fit.train_step(
            state,
            replay.take(data, rows),
            value_fn,
            None if weights is None else weights[rows],
            loss=loss,
            config=config,
        )

    return _steps(partial(jax.lax.scan, step), state, rows)


def transitions(
    shape: tuple[int, ...], sizes: dict[str, int] = HALFCHEETAH
) -> Transition:
    """Returns random transitions, `[*shape, ...]`, of which none ends an episode."""
    draw = np.random.default_rng(0).standard_normal
    obs_shape, action_shape = ((*shape, size) for size in sizes.values())
    return Transition(
        obs=jnp.asarray(draw(obs_shape), jnp.float32),
        action=jnp.asarray(np.tanh(draw(action_shape)), jnp.float32),
        reward=jnp.asarray(draw(shape), jnp.float32),
        next_obs=jnp.asarray(draw(obs_shape), jnp.float32),
        terminated=jnp.zeros(shape, bool),
        truncated=jnp.zeros(shape, bool),
    )


def _steps(function: Callable, *args: Any) -> Steps:
    program = jax.jit(function)
    return Steps(
        call=lambda: program(*args),
        products=measure.products_alone(function, *args),
        flops=measure.matmul_flops(function, *args),
    )
