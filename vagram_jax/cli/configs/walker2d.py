"""Walker2d.

Only what differs from the shared settings is stated.
"""

from vagram_jax.cli.configs import variants


def paper():
    """The settings of the paper's code.

    Returns:
      A `ConfigDict`.
    """
    config = variants.paper("walker2d")
    config.total_steps = config.replay_capacity = 500_000
    config.fit.learning_rate = 3e-4
    config.fit.weight_decay = 2e-5
    config.real_fraction = (1.0, 0.05, 0.0, 10_000.0)
    config.sac.temperature_learning_rate = 3e-3
    config.sac.target_entropy = (-3.0,)
    return config


def quick():
    """The course of a curve on a few cores.

    Returns:
      A `ConfigDict`.
    """
    config = variants.quick("walker2d")
    config.sac.target_entropy = (-3.0,)
    return config


get_config = variants.named(quick=quick, paper=paper)
