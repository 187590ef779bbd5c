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
# # Which loss on my data?
#
# A fixed data set, one small model for each loss, and one question: how wrong is the
# value of the predicted next state on data that no model has seen?

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

from vagram_jax import LOSSES, DynamicsConfig, FitConfig, Transition, predict
from vagram_jax import fit as fitting
from vagram_jax.analysis import figures
from vagram_jax.replay import ReplayState

# %% [markdown]
# ## The data
#
# Put your own arrays here: `obs` and `next_obs` `[N, obs_dim]`, `action` `[N,
# action_dim]` and `reward` `[N]`. These are steps of a pendulum, observed with six
# distracting dimensions that have dynamics of their own.

# %%
rng = np.random.default_rng(0)
mixing = 2.0 * rng.normal(size=(6, 6))


def pendulum(count):
    angle = rng.uniform(-np.pi, np.pi, size=count)
    speed, torque = rng.uniform(-4.0, 4.0, size=count), rng.uniform(-1, 1, size=count)
    distraction = rng.normal(size=(count, 6))
    next_speed = speed + 0.75 * np.sin(angle) + 0.3 * torque
    next_angle = angle + 0.05 * next_speed

    def observe(angle, speed, rest):
        return np.column_stack([np.cos(angle), np.sin(angle), speed, rest])

    return Transition(
        obs=jnp.asarray(observe(angle, speed, distraction)),
        action=jnp.asarray(torque[:, None]),
        reward=jnp.asarray(-(angle**2) - 0.1 * speed**2),
        next_obs=jnp.asarray(
            observe(next_angle, next_speed, np.sin(distraction @ mixing))
        ),
    )


NUM_ROWS = 4000
test = pendulum(2000)
train = ReplayState(
    data=pendulum(NUM_ROWS), insert_at=jnp.int32(0), size=jnp.int32(NUM_ROWS)
)

# %% [markdown]
# ## The value function
#
# Any function of one state. Usually it is a critic that was trained on the same data;
# here it is the cost of the state ahead.


# %%
def value_fn(state):
    angle = jnp.arctan2(state[1], state[0] + 1e-3)
    return -(jnp.square(angle) + 0.1 * jnp.square(state[2]))


# %% [markdown]
# ## One model for each loss
#
# The same data, the same seeds and the same network. Seeds are trained at the same time
# by `vmap`.

# %%
NAMES = ("mle", "mse", "mse_normalized", "vagram")
NUM_SEEDS = 3
fit_config = FitConfig(max_epochs=20)


@functools.partial(jax.jit, static_argnames="name")
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def value_error(key, train, test, name):
    key_init, key_fit = jax.random.split(key)
    loss = LOSSES[name]
    state = fitting.init(
        key_init,
        obs_dim=9,
        action_dim=1,
        dynamics_config=DynamicsConfig(
            hidden=(16, 16),
            num_members=1,
            num_elites=1,
            head="gaussian" if loss.gaussian else "deterministic",
        ),
        config=fit_config,
    )
    state, _ = fitting.fit(
        key_fit, state, train, value_fn, loss=loss, config=fit_config
    )
    next_obs = predict(state.params, test.obs, test.action).next_obs[0]
    difference = jax.vmap(value_fn)(next_obs) - jax.vmap(value_fn)(test.next_obs)
    return jnp.median(jnp.abs(difference))


keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
errors = {name: np.asarray(value_error(keys, train, test, name)) for name in NAMES}

# %% [markdown]
# ## The answer
#
# Each dot is a seed. Lower is better. If `mse_normalized` is as good as `vagram` on
# your data, take the simpler one.

# %%
fig, axis = plt.subplots(figsize=(6, 3))
for index, name in enumerate(NAMES):
    axis.scatter([index] * NUM_SEEDS, errors[name], color=figures.color(name))
axis.set_xticks(range(len(NAMES)), NAMES)
axis.set(ylabel="median error of the value", ylim=(0.0, None))
fig.tight_layout()
