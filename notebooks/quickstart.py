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
# # Quick start
#
# An agent learns to swing up a pendulum with a model that is too small for all that it
# observes. We train it with two model losses, plot the returns, and look at what each
# loss attends to.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    import subprocess

    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "vagram_jax"])

# %%
import matplotlib.pyplot as plt
import numpy as np

from vagram_jax import envs
from vagram_jax.analysis import figures
from vagram_jax.cli import configs
from vagram_jax.run import loop

# %% [markdown]
# ## The task
#
# The config `pendulum` is the one that `vagram compare --config=pendulum` trains. Its
# first three observations are the pendulum's: the cosine and the sine of the angle, and
# the velocity. The others are distractors, which neither actions nor rewards depend on.
#
# Here the training ends before the task is learned. `overrides` takes the keys and
# values of `--config.KEY=VALUE`.

# %%
LOSSES = ("vagram", "mle")
SHORT = {
    "num_seeds": "2",
    "total_steps": "900",
    "steps_per_epoch": "100",
    "updates_per_step": "2",
    "eval_every": "1",
    "eval_episodes": "4",
}
PENDULUM = ["cos angle", "sin angle", "velocity"]


def config_of(loss):
    return configs.load("pendulum", overrides={"loss": loss, **SHORT})


env = envs.from_config(config_of("vagram")[0])
num_distractors = env.observation_size - len(PENDULUM)
print(f"{env.observation_size} observations, {num_distractors} of them distractors")

# %% [markdown]
# ## Training
#
# `loop.train` yields after the random steps of the warm-up and after every epoch. An
# epoch fits the model, imagines short rollouts in it, and improves the agent on
# imagined and real steps. All seeds train at the same time, in the same programs.


# %%
def train(loss):
    _, algorithm, run_config = config_of(loss)
    history = []
    for _, progress in loop.train(run_config, algorithm, env):
        print(loss, progress.env_steps, np.round(progress.returns))
        history.append(progress)
    return history


histories = {loss: train(loss) for loss in LOSSES}

# %% [markdown]
# ## Returns
#
# A line is a seed. The first point is the agent before training.

# %%
fig, axis = plt.subplots(figsize=(6, 3))
for loss, history in histories.items():
    steps = [progress.env_steps for progress in history]
    returns = np.stack([progress.returns for progress in history], axis=1)
    for seed, line in enumerate(returns):
        label = None if seed else loss
        axis.plot(steps, line, ".-", color=figures.color(loss), label=label)
axis.set(xlabel="environment steps", ylabel="return")
axis.legend()
fig.tight_layout()

# %% [markdown]
# ## What the losses attend to
#
# `model/attention_dim` is the share of each state dimension in a loss: the curvature of
# the loss in that dimension, times the variance that there is to predict. VaGraM
# weights a dimension by the squared gradient of the value function, so its shares
# follow what the agent has learned, which is little after so few steps. Maximum
# likelihood doesn't know the value function: it divides by the variance that it
# predicts, so it attends to what it predicts well.
#
# The dashed line is where all dimensions have the same share.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), width_ratios=(2, 1))
dims = np.arange(env.observation_size)
for index, (loss, history) in enumerate(histories.items()):
    epochs = history[1:]  # the warm-up fits no model
    shares = [progress.metrics["model/attention_dim"] for progress in epochs]
    shares = np.mean(shares, axis=1)  # [epochs, obs_dim], a mean over the seeds
    style = {"color": figures.color(loss), "label": loss}
    left.bar(dims + 0.4 * index - 0.2, shares[-1], width=0.4, **style)
    steps = [progress.env_steps for progress in epochs]
    right.plot(steps, shares[:, : len(PENDULUM)].sum(axis=1), ".-", **style)
left.axhline(1 / len(dims), color="gray", linestyle="--")
left.set_xticks(dims, PENDULUM + [f"{d}" for d in range(num_distractors)], rotation=90)
left.set(ylabel="share of the loss, last epoch")
left.legend()
right.axhline(len(PENDULUM) / len(dims), color="gray", linestyle="--")
right.set(xlabel="environment steps", ylabel="share of the pendulum", ylim=(0.0, 1.0))
fig.tight_layout()

# %% [markdown]
# Two seeds and so few steps say nothing about which loss is better.
# `vagram compare --config=pendulum` trains four seeds of four algorithms to the end,
# and gives intervals. The notebook `reading_results` reads what it writes.
