"""Soft actor-critic in plain NumPy float64, sample by sample.

As in `oracles.py`, nothing of the package is imported. A network is a list of layers
`[(kernel, bias), ...]`; `critics` is a list of such lists. `noise` is the standard
normal sample, `[B, action_dim]`, that the policy's actions are made of.
"""

import math

import numpy as np
import oracles
from scipy import stats

LOG_STD_RANGE = (-5.0, 2.0)


def tanh_gaussian_log_prob(raw, mean, log_std):
    """The log-density of `tanh(raw)` for one vector, by `log cosh`."""
    total = 0.0
    for u, m, s in zip(raw, mean, log_std, strict=True):
        log_cosh = abs(u) + math.log1p(math.exp(-2.0 * abs(u))) - math.log(2.0)
        total += stats.norm.logpdf(u, loc=m, scale=math.exp(s)) + 2.0 * log_cosh
    return total


def policy(layers, obs):
    """Mean and log-standard-deviation for one state, before the tanh."""
    out = oracles.mlp(layers, obs, "relu")
    half = len(out) // 2
    low, high = LOG_STD_RANGE
    return out[:half], [low + (high - low) * (math.tanh(x) + 1) / 2 for x in out[half:]]


def sample(layers, obs, noise):
    """The action for one state and its log-density."""
    mean, log_std = policy(layers, obs)
    raw = [m + math.exp(s) * n for m, s, n in zip(mean, log_std, noise, strict=True)]
    return np.tanh(raw), tanh_gaussian_log_prob(raw, mean, log_std)


def q_value(layers, obs, action, activation="relu"):
    """One critic's value of one state and action."""
    return float(oracles.mlp(layers, [*obs, *action], activation)[0])


def bellman_target(actor, targets, temperature, batch, noise, discount):
    """The reward and the discounted soft value of the successor, if it has one."""
    actual = []
    for row, reward in enumerate(batch["reward"]):
        next_obs = batch["next_obs"][row]
        action, log_prob = sample(actor, next_obs, noise[row])
        smallest = min(q_value(target, next_obs, action) for target in targets)
        value = smallest - temperature * log_prob
        actual.append(reward if batch["terminated"][row] else reward + discount * value)
    return np.array(actual)


def critic_loss(critics, batch, target):
    """The squared errors of all critics, their mean over the batch."""
    total = 0.0
    for row, expected in enumerate(target):
        for critic in critics:
            value = q_value(critic, batch["obs"][row], batch["action"][row])
            total += (value - expected) ** 2
    return total / len(target)


def actor_loss(actor, critics, temperature, batch, noise):
    """The weighted log-density less the smaller value, and the log-densities."""
    losses, log_probs = [], []
    for row, obs in enumerate(batch["obs"]):
        action, log_prob = sample(actor, obs, noise[row])
        smallest = min(q_value(critic, obs, action) for critic in critics)
        losses.append(temperature * log_prob - smallest)
        log_probs.append(log_prob)
    return math.fsum(losses) / len(losses), np.array(log_probs)


def first_adam_step(gradient, learning_rate, epsilon=1e-8):
    """What Adam adds to a parameter at its first step: both its averages are exact."""
    return -learning_rate * gradient / (abs(gradient) + epsilon)


def values(actor, critics, obs, action=None):
    """What each critic gives one state at the policy's mean action, or at `action`."""
    if action is None:
        action = np.tanh(policy(actor, obs)[0])
    return [q_value(critic, obs, action) for critic in critics]
