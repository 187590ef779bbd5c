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

# %% [markdown]
# # An environment of your own
#
# An environment is a class with `reset` and `step`, written in JAX. We write one, check
# it, add distractors, train on it, and look at the messages for common mistakes.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    import subprocess

    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "vagram_jax"])

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from vagram_jax import MBPOConfig, check_env, from_mapping
from vagram_jax.envs import Distractors, State
from vagram_jax.run import loop

# %% [markdown]
# ## The task
#
# A puck on a hill of ice slides down unless it is pushed back. The episode ends when it
# is too far from the top.
#
# - Actions are in [-1, 1]; the environment scales them.
# - `done` is 1 if the episode ended at this step. Time limits aren't ends:
#   `episode_length` truncates an episode.
# - `termination` says the same of any step, also of imagined ones. It returns true for
#   NaN, too.
# - What the observation doesn't show goes into `pipeline_state`. Here it is empty.


# %%
class Puck:
    observation_size, action_size, episode_length = 4, 2, 50

    def reset(self, key):
        position = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        obs = jnp.concatenate([position, jnp.zeros(2)])
        return self._state(obs, reward=jnp.zeros(()), done=jnp.zeros(()))

    def step(self, state, action):
        position, velocity = state.obs[:2], state.obs[2:]
        velocity = 0.95 * velocity + 0.1 * position + 0.2 * action
        position = position + 0.2 * velocity
        obs = jnp.concatenate([position, velocity])
        # In [0, 1], so that an early end never pays.
        reward = jnp.maximum(1.0 - 0.25 * jnp.sum(position**2), 0.0)
        done = self.termination(state.obs, action, obs)
        return self._state(obs, reward, done.astype(jnp.float32))

    def termination(self, obs, action, next_obs):
        return ~(jnp.sum(next_obs[:2] ** 2) <= 4.0)

    def _state(self, obs, reward, done):
        return State(
            pipeline_state=(), obs=obs, reward=reward, done=done, metrics={}, info={}
        )


# %% [markdown]
# ## Check it
#
# `check_env` traces the functions and compiles nothing. It raises an error of one line
# if the environment can't be trained on.

# %%
check_env(Puck())

# %% [markdown]
# Shapes and types are all that it can check. So look at some episodes, here with random
# actions.


# %%
@jax.vmap
def random_episode(key):
    env = Puck()
    key_reset, key_act = jax.random.split(key)
    first = env.reset(key_reset)

    def step(state, action):
        state = env.step(state, action)
        return state, (state.obs[:2], state.done)

    shape = (env.episode_length, env.action_size)
    actions = jax.random.uniform(key_act, shape, minval=-1.0, maxval=1.0)
    return jax.lax.scan(step, first, actions)[1]


fig, axis = plt.subplots(figsize=(4, 4))
paths, ends = random_episode(jax.random.split(jax.random.key(0), 8))
for path, done in zip(paths, ends, strict=True):
    length = int(jnp.argmax(done)) + 1 if jnp.any(done) else len(done)
    axis.plot(*path[:length].T, ".-")
axis.add_patch(plt.Circle((0, 0), 2.0, fill=False))
axis.set(xlabel="position 1", ylabel="position 2", aspect="equal")
fig.tight_layout()

# %% [markdown]
# ## With distractors
#
# `Distractors` appends dimensions to the observation that neither actions nor rewards
# depend on. A model must predict them, too, unless its loss knows better.

# %%
ENVS = {"alone": Puck(), "8 distractors": Distractors(Puck(), 8)}
{name: env.observation_size for name, env in ENVS.items()}

# %% [markdown]
# ## Train on it
#
# A small model and a small agent, for a moment. The config's other keys have their
# defaults; a mistyped key is an error.

# %%
config = from_mapping(
    MBPOConfig,
    {
        "loss": "vagram",
        "dynamics": {
            "hidden": [32],
            "num_members": 3,
            "num_elites": 2,
            "normalize_state": True,
            "normalize_reward": True,
        },
        "weights": {"normalize": True},
        "fit": {"batch_size": 64, "learning_rate": 3e-3, "max_epochs": 30},
        "imagine": {"rollouts_per_step": 20, "horizon": 3},
        "sac": {
            "hidden": [32, 32],
            "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "discount": 0.95,
        },
        "real_fraction": 0.3,
        "batch_size": 64,
        "updates_per_step": 3,
        "warmup_steps": 200,
        "steps_per_epoch": 100,
        "replay_capacity": 1000,
    },
)
run_config = loop.RunConfig(num_seeds=2, total_steps=600)


def train(env):
    return [progress for _, progress in loop.train(run_config, config, env)]


histories = {name: train(env) for name, env in ENVS.items()}

# %% [markdown]
# A line is a seed. The first point is the agent before training, and no return is above
# 50, the length of an episode.

# %%
fig, axis = plt.subplots(figsize=(6, 3))
for index, (name, history) in enumerate(histories.items()):
    steps = [progress.env_steps for progress in history]
    returns = np.stack([progress.returns for progress in history], axis=1)
    for seed, line in enumerate(returns):
        axis.plot(steps, line, f"C{index}.-", label=None if seed else name)
axis.set(xlabel="environment steps", ylabel="return", ylim=(0.0, 50.0))
axis.legend()
fig.tight_layout()

# %% [markdown]
# A transition with a number that isn't finite ends the episode and isn't stored.
# `dropped` counts such transitions. It should be zero:

# %%
{name: history[-1].dropped for name, history in histories.items()}

# %% [markdown]
# ## What errors look like
#
# One line: what is wrong, what is accepted, and where in your file the exception comes
# from.


# %%
class Branches(Puck):
    def step(self, state, action):
        if action[0] > 0.0:  # Python can't branch on a traced number
            return state
        return super().step(state, action)


class TooLong(Puck):
    observation_size = 5


class Counts(Puck):
    def _state(self, obs, reward, done):
        return super()._state(obs, reward.astype(jnp.int32), done)


class KeepsTime(Puck):
    def step(self, state, action):
        return super().step(state, action).replace(info={"time": state.obs[0]})


def message(check, *arguments):
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError("no error")


for env in (Branches(), TooLong(), Counts(), KeepsTime()):
    print(message(check_env, env), end="\n\n")

# %% [markdown]
# Imagined rollouts need to know where episodes end. For an environment without
# `termination`, the default `imagine.termination="auto"` trains a classifier. `"none"`
# is for tasks in which no episode terminates, and `"env"` insists on the function:


# %%
class NeverSays(Puck):
    termination = None


print(loop.check(run_config, config, NeverSays()).imagine.termination)
insists = config.replace(imagine=config.imagine.replace(termination="env"))
print(message(loop.check, run_config, insists, NeverSays()))

# %% [markdown]
# To train from a command, put the class into a file `my_task.py` and name it:
# `vagram train --config.env=my_task:Puck --config.distractors=8`.
