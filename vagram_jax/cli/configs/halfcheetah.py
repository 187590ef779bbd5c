"""HalfCheetah."""

from vagram_jax.cli import configs
from vagram_jax.cli.configs import mujoco


def paper():
    """Returns the settings of the paper's code."""
    config = mujoco.paper("halfcheetah")
    config.total_steps = config.replay_capacity = 400_000
    config.fit.weight_decay = 2e-5
    config.fit.patience = 1
    config.fit.max_epochs = 50
    config.real_fraction = (1.0, 0.05, 0.0, 10_000.0)
    config.updates_per_step = 40
    config.sac.critic_learning_rate = 3e-5
    config.sac.target_entropy = -3.0
    return config


def quick():
    """Returns settings for a few cores."""
    config = mujoco.quick("halfcheetah")
    config.sac.target_entropy = -3.0
    return config


get_config = configs.variants(quick=quick, paper=paper)
