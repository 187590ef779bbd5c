"""Humanoid, without forces and inertias in the observation, as in MBPO."""

from vagram_jax.cli import configs
from vagram_jax.cli.configs import mujoco


def paper():
    """Returns the settings of the paper's code for the humanoid of dm_control."""
    config = mujoco.paper("humanoid")
    config.observation = "truncated"
    config.total_steps = config.replay_capacity = 300_000
    config.fit.learning_rate = 5e-4
    config.fit.weight_decay = 3e-6
    config.fit.patience = 5
    config.imagine.horizon = (1, 5, 20_000, 300_000)
    config.imagine.keep_epochs = 20
    config.real_fraction = (0.8, 0.05, 0.0, 50_000.0)
    config.sac.critic_learning_rate = 1e-5
    config.sac.target_entropy = -2.0
    return config


def quick():
    """Returns settings for a few cores."""
    config = mujoco.quick("humanoid")
    config.observation = "truncated"
    config.sac.target_entropy = -2.0
    return config


get_config = configs.variants(quick=quick, paper=paper)
