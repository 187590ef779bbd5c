"""Hopper, also with the paper's variations: a small model, distracting dimensions.

A small model has two layers of 64 units with the paper's settings, and of 8 with the
quick ones. The 15 distracting dimensions are of the kind that the paper's code uses.
"""

from vagram_jax.cli import configs
from vagram_jax.cli.configs import mujoco


def paper():
    """Returns the settings of the paper's code."""
    config = mujoco.paper("hopper")
    config.total_steps = config.replay_capacity = 250_000
    config.fit.weight_decay = 5e-5
    config.fit.batch_size = 1024
    config.imagine.horizon = (1, 5, 20_000, 150_000)
    config.real_fraction = (1.0, 0.05, 0.0, 20_000.0)
    config.sac.actor_learning_rate = 3e-5
    config.sac.target_entropy = -1.0
    return config


def paper_small():
    """Returns `paper` with a small model."""
    config = paper()
    config.dynamics.hidden = (64, 64)
    return config


def paper_distracted():
    """Returns `paper` with distractors and the 500,000 steps of the code's scripts."""
    config = _distracted(paper())
    config.total_steps = config.replay_capacity = 500_000
    config.imagine.horizon = 1
    config.real_fraction = (1.0, 0.05, 0.0, 50_000.0)
    return config


def quick():
    """Returns settings that take at most an hour on two cores."""
    config = mujoco.quick("hopper")
    config.sac.target_entropy = -1.0
    return config


def quick_small():
    """Returns `quick` with a small model."""
    config = quick()
    config.dynamics.hidden = (8, 8)
    return config


def quick_distracted():
    """Returns `quick` with distractors."""
    return _distracted(quick())


def _distracted(config):
    config.distractors = 15
    config.distractor_kind = "switching"
    return config


get_config = configs.variants(
    quick=quick,
    quick_small=quick_small,
    quick_distracted=quick_distracted,
    paper=paper,
    paper_small=paper_small,
    paper_distracted=paper_distracted,
)
