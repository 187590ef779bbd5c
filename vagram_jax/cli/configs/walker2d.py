"""Walker2d."""

from vagram_jax.cli import configs
from vagram_jax.cli.configs import mujoco


def paper():
    """Returns the settings of the paper's code."""
    config = mujoco.paper("walker2d")
    config.total_steps = config.replay_capacity = 500_000
    config.fit.learning_rate = 3e-4
    config.fit.weight_decay = 2e-5
    config.real_fraction = (1.0, 0.05, 0.0, 10_000.0)
    config.sac.temperature_learning_rate = 3e-3
    config.sac.target_entropy = -3.0
    return config


def quick():
    """Returns settings for a few cores."""
    config = mujoco.quick("walker2d")
    config.sac.target_entropy = -3.0
    return config


get_config = configs.variants(quick=quick, paper=paper)
