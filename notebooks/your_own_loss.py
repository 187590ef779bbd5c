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
# # A loss of your own
#
# A model loss is a function of parameters, a batch and a value function. `register`
# gives it a name, and every config, command and comparison of this package accepts that
# name.

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

from vagram_jax import (
    LOSSES,
    DynamicsConfig,
    FitConfig,
    Transition,
    predict,
    register,
    vagram_loss,
    value_gradient_weights,
)
from vagram_jax import fit as fitting
from vagram_jax.analysis import figures
from vagram_jax.replay import ReplayState

# %% [markdown]
# ## The idea
#
# VaGraM weights a squared error by the squared value gradient, so a few steep states
# can dominate. Let us try the magnitude of the gradient instead of its square.
#
# What depends on data and value function alone goes into `prepare`: a fit calls it once
# for all of its data. The loss gets the rows of its batch as `prepared`. `where` marks
# the rows that count.


# %%
def magnitudes(batch, value_fn, *, where=None):
    return jnp.sqrt(value_gradient_weights(value_fn, batch.next_obs, where=where))


@register("vagram_magnitude", prepare=magnitudes)
def magnitude_loss(params, batch, value_fn, *, predict=predict, prepared=None):
    if prepared is None:
        prepared = magnitudes(batch, value_fn)
    return vagram_loss(params, batch, value_fn, predict=predict, prepared=prepared)


# %% [markdown]
# A loss that isn't a weighted squared error is as short. This one has no `prepare`, and
# its errors count by their size.


# %%
@register("absolute")
def absolute_loss(params, batch, value_fn, *, predict=predict):
    next_obs, reward, _ = predict(params, batch.obs, batch.action)
    error = jnp.sum(jnp.sqrt((next_obs - batch.next_obs) ** 2 + 1e-2), axis=-1)
    return jnp.mean(error + (reward - batch.reward) ** 2)


# %% [markdown]
# ## Try it on a batch
#
# Any dict of arrays will do. A mistake ends with one line that names your file and
# line.

# %%
rng = np.random.default_rng(0)
obs, action = rng.normal(size=(2000, 4)), rng.uniform(-1, 1, size=(2000, 1))
data = Transition(
    obs=jnp.asarray(obs),
    action=jnp.asarray(action),
    reward=jnp.asarray(-(obs[:, 0] ** 2)),
    next_obs=jnp.asarray(0.9 * np.sin(obs + action)),
)


def value_fn(state):  # steep in the first dimension, flat in the last
    return -jnp.sum(jnp.array([4.0, 1.0, 0.25, 0.0]) * state**2)


model = DynamicsConfig(hidden=(16,), num_members=2, num_elites=1)
fit_config = FitConfig(batch_size=128, max_epochs=20)
start = fitting.init(
    jax.random.key(0), obs_dim=4, action_dim=1, dynamics_config=model, config=fit_config
)
{
    name: float(LOSSES[name](start.params, data, value_fn))
    for name in ("mse", "vagram", "vagram_magnitude", "absolute")
}

# %% [markdown]
# ## Fit a model with each loss
#
# `fit` trains an ensemble until its hold-out loss stops improving. It reports which
# dimensions the loss attends to, as shares of its curvature.


# %%
@functools.partial(jax.jit, static_argnames="name")
def attention(start, buffer, name):
    key = jax.random.key(1)
    _, metrics = fitting.fit(
        key, start, buffer, value_fn, loss=LOSSES[name], config=fit_config
    )
    return metrics["model/attention_dim"]


buffer = ReplayState(data=data, insert_at=jnp.int32(0), size=jnp.int32(2000))
shares = {
    name: np.asarray(attention(start, buffer, name))
    for name in ("mse", "absolute", "vagram_magnitude", "vagram")
}

# %%
fig, axis = plt.subplots(figsize=(7, 3))
for index, (name, share) in enumerate(shares.items()):
    style = {"color": figures.color(name), "label": name}
    axis.bar(np.arange(4) + 0.2 * index - 0.3, share, width=0.2, **style)
axis.set_xticks(range(4), [f"dimension {d}" for d in range(4)])
axis.set(ylabel="share of the loss")
axis.legend()
fig.tight_layout()

# %% [markdown]
# To train an agent with it, import the module that registers the loss, and name it:
# `MBPOConfig(loss="vagram_magnitude")`.
