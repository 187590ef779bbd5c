"""Hopper, and what the paper varies on it: a small model and distracting dimensions.

Only what differs from the shared settings is stated. A model is small with two layers
of 64 in the paper's settings and of 8 in the quick ones; the distracting dimensions are
15, of the kind that the paper's code has.
"""

from vagram_jax.cli.configs import variants


def paper():
    """The settings of the paper's code.

    Returns:
      A `ConfigDict`.
    """
    config = variants.paper("hopper")
    config.total_steps = 250_000
    config.replay_capacity = 250_000
    config.fit.weight_decay = 5e-5
    config.fit.batch_size = 1024
    config.imagine.horizon = (1, 5, 20_000, 150_000)
    config.real_fraction = (1.0, 0.05, 0.0, 20_000.0)
    config.sac.actor_learning_rate = 3e-5
    config.sac.target_entropy = (-1.0,)
    return config


def quick():
    """An hour on two cores at most.

    Returns:
      A `ConfigDict`.
    """
    config = variants.quick("hopper")
    config.sac.target_entropy = (-1.0,)
    return config


def paper_distracted():
    """As `paper`, distracted, for the 500,000 steps of the code's scripts.

    Returns:
      A `ConfigDict`.
    """
    config = _distracted(paper())
    config.total_steps = config.replay_capacity = 500_000
    config.imagine.horizon = (1,)
    config.real_fraction = (1.0, 0.05, 0.0, 50_000.0)
    return config


def _small(config, hidden):
    config.dynamics.hidden = hidden
    return config


def _distracted(config):
    config.distractors = 15
    config.distractor_kind = "switching"
    return config


get_config = variants.named(
    quick=quick,
    quick_small=lambda: _small(quick(), (8, 8)),
    quick_distracted=lambda: _distracted(quick()),
    paper=paper,
    paper_small=lambda: _small(paper(), (64, 64)),
    paper_distracted=paper_distracted,
)
