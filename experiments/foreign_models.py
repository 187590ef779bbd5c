"""The cost of `vagram_loss` on models of other libraries.

Each is compared with the same weighted loss written by hand for the same model: a
training step that takes the value gradients of its batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import measure
from vagram_jax import losses, sac

# The batch and the sizes that MBPO and the paper use, for the largest task.
_OBS_DIM, _ACTION_DIM, _BATCH, _WIDTH = 17, 6, 256, 200
_SAC = sac.SACConfig(hidden=(256, 256))


def ratios(rounds: int = 15, width: int = _WIDTH) -> dict[str, float]:
    """Returns the time of `vagram_loss` relative to a loss written by hand.

    Args:
      rounds: number of rounds; each times every program.
      width: of the two hidden layers of each model.
    """
    batch = _batch()
    agent = sac.init(
        jax.random.key(0), obs_dim=_OBS_DIM, action_dim=_ACTION_DIM, config=_SAC
    )
    value_fn = sac.value_fn(agent, config=_SAC)
    calls = {}
    for name, make in MODELS.items():
        params, predict = make(width)
        for side, loss in (("vagram", losses.vagram_loss), ("hand", by_hand)):
            calls[name, side] = _step(loss, params, predict, batch, value_fn)
    seconds = measure.seconds(calls, rounds=rounds)
    return {
        f"vagram_loss to one by hand, {name}, time": (
            seconds[name, "vagram"] / seconds[name, "hand"]
        )
        for name in MODELS
    }


def by_hand(params, batch, value_fn, *, predict) -> jax.Array:
    """Returns what `vagram_loss` returns, written for one case.

    Args:
      params: parameters of the model.
      batch: a dict of `[B, ...]` arrays.
      value_fn: maps one state to `[K]`.
      predict: the model.
    """
    next_obs, reward = predict(params, batch["obs"], batch["action"])
    slopes = jax.vmap(jax.jacrev(value_fn))(batch["next_obs"])  # [B, K, obs_dim]
    weights = jax.lax.stop_gradient(jnp.mean(slopes**2, axis=1))
    error = jnp.sum(weights * (next_obs - batch["next_obs"]) ** 2, axis=-1)
    return jnp.mean(error + (reward - batch["reward"]) ** 2)


def hand_written(width: int) -> tuple[Any, Callable]:
    """Returns parameters and `predict` of a model of plain arrays."""
    sizes = [_OBS_DIM + _ACTION_DIM, width, width, _OBS_DIM + 1]
    draw = np.random.default_rng(0).standard_normal
    params = [
        {
            "w": jnp.asarray(draw((inputs, outputs)) / inputs**0.5, jnp.float32),
            "b": jnp.zeros(outputs),
        }
        for inputs, outputs in itertools.pairwise(sizes)
    ]

    def predict(params, obs, action):
        hidden = jnp.concatenate([obs, action], axis=-1)
        for layer in params[:-1]:
            hidden = jax.nn.silu(hidden @ layer["w"] + layer["b"])
        return _split(obs, hidden @ params[-1]["w"] + params[-1]["b"])

    return params, predict


def flax_nnx(width: int) -> tuple[Any, Callable]:
    """Returns parameters and `predict` of a model of Flax NNX."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(_OBS_DIM + _ACTION_DIM, width, rngs=rngs),
        jax.nn.silu,
        nnx.Linear(width, width, rngs=rngs),
        jax.nn.silu,
        nnx.Linear(width, _OBS_DIM + 1, rngs=rngs),
    )
    graph, params = nnx.split(model)

    def predict(params, obs, action):
        out = nnx.merge(graph, params)(jnp.concatenate([obs, action], axis=-1))
        return _split(obs, out)

    return params, predict


def equinox_mlp(width: int) -> tuple[Any, Callable]:
    """Returns parameters and `predict` of a model of Equinox."""
    import equinox

    model = equinox.nn.MLP(
        _OBS_DIM + _ACTION_DIM,
        _OBS_DIM + 1,
        width_size=width,
        depth=2,
        activation=jax.nn.silu,
        key=jax.random.key(0),
    )
    params, rest = equinox.partition(model, equinox.is_array)

    def predict(params, obs, action):
        one_row = equinox.combine(params, rest)
        out = jax.vmap(one_row)(jnp.concatenate([obs, action], axis=-1))
        return _split(obs, out)

    return params, predict


MODELS = {
    "hand-written model": hand_written,
    "Flax NNX": flax_nnx,
    "Equinox": equinox_mlp,
}


def _step(loss, params, predict, batch, value_fn) -> Callable[[], Any]:
    """A compiled call of the loss and its gradient."""
    program = jax.jit(
        jax.value_and_grad(
            lambda params, batch: loss(params, batch, value_fn, predict=predict)
        )
    )
    return lambda: program(params, batch)


def _split(obs, out):
    return obs + out[..., :_OBS_DIM], out[..., _OBS_DIM]


def _batch() -> dict[str, jax.Array]:
    draw = np.random.default_rng(1).standard_normal
    shapes = {
        "obs": (_BATCH, _OBS_DIM),
        "action": (_BATCH, _ACTION_DIM),
        "reward": (_BATCH,),
        "next_obs": (_BATCH, _OBS_DIM),
    }
    return {name: jnp.asarray(draw(x), jnp.float32) for name, x in shapes.items()}
