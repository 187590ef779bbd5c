# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # VaGraM on a model of your own
#
# You have data, a dynamics model and a value function. `vagram_loss` replaces the loss
# that trains the model: it weights the error of each state dimension by how much the
# value depends on it. Data may be a dict of NumPy arrays, and the model may come from
# any library.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    import subprocess

    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "vagram_jax"])

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from vagram_jax import mse_loss, vagram_loss

# %% [markdown]
# ## The data
#
# Position and velocity of a mass on a soft spring, and two sensors that show something
# else: large, and hard to predict. The names `obs`, `action`, `reward` and `next_obs`
# are all that a loss needs.

# %%
rng = np.random.default_rng(0)


def transitions(count):
    obs = rng.uniform(-2.0, 2.0, size=(count, 4))
    action = rng.uniform(-1.0, 1.0, size=(count, 1))
    position, velocity, *sensors = obs.T
    next_velocity = 0.9 * velocity - 0.3 * np.tanh(2.0 * position) + 0.3 * action[:, 0]
    columns = [position + 0.3 * next_velocity, next_velocity]
    columns += [2.0 * np.sin(4.0 * sensor) for sensor in sensors]
    return {
        "obs": obs,
        "action": action,
        "reward": -(position**2),
        "next_obs": np.stack(columns, axis=1),
    }


train, test = transitions(4096), transitions(1024)

# %% [markdown]
# ## The value function
#
# It maps **one** state to a scalar, or to K values. Here the value depends on position
# and velocity alone; in your code it is the critic.


# %%
def value_fn(state):
    position, velocity = state[0], state[1]
    return -4.0 * jnp.square(position + 0.5 * velocity) - 2.0 * jnp.square(velocity)


# %% [markdown]
# ## The model
#
# A network of Flax NNX that is too small to predict everything. `predict` maps a
# **batch** of observations and actions to the next observations and the rewards.


# %%
class Model(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(5, 12, rngs=rngs)
        self.outer = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, obs, action):
        hidden = nnx.tanh(self.inner(jnp.concatenate([obs, action], axis=-1)))
        out = self.outer(hidden)
        return obs + out[:, :4], out[:, 4]


graph, first_params = nnx.split(Model(nnx.Rngs(0)))


def predict(params, obs, action):
    return nnx.merge(graph, params)(obs, action)


# %% [markdown]
# ## Training
#
# An ordinary loop. The loss is the only line that differs between the two models.


# %%
optimizer = optax.adam(3e-3)


@functools.partial(jax.jit, static_argnames="loss_fn")
def fit(params, data, loss_fn):
    def step(carry, rows):
        params, opt_state = carry
        batch = {name: array[rows] for name, array in data.items()}
        grads = jax.grad(loss_fn)(params, batch, value_fn, predict=predict)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    rows = jax.random.randint(jax.random.key(0), (3000, 256), 0, len(data["reward"]))
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), rows)
    return params


models = {
    "squared error": fit(first_params, train, mse_loss),
    "VaGraM": fit(first_params, train, vagram_loss),
}

# %% [markdown]
# ## What each model is good at
#
# VaGraM gives up the sensors, and predicts what the value depends on.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(3, 1))
value_errors = {}
for index, (name, params) in enumerate(models.items()):
    next_obs, _ = predict(params, test["obs"], test["action"])
    error = np.sqrt(np.mean((next_obs - test["next_obs"]) ** 2, axis=0))
    values, real = jax.vmap(value_fn)(next_obs), jax.vmap(value_fn)(test["next_obs"])
    value_errors[name] = float(jnp.sqrt(jnp.mean((values - real) ** 2)))
    left.bar(np.arange(4) + 0.4 * index - 0.2, error, width=0.4, label=name)
    right.bar(index, value_errors[name], width=0.6)
left.set_xticks(range(4), ["position", "velocity", "sensor 1", "sensor 2"])
left.set(ylabel="root mean squared error", yscale="log")
left.legend()
right.set_xticks(range(2), list(models))
right.set(ylabel="error of the value")
fig.tight_layout()

# %% [markdown]
# For an ensemble return a member axis in front, `[E, B, obs_dim]`. For a Gaussian model
# return the log-variance as third element, and use `mle_loss` or `vagram_nll_loss`.
