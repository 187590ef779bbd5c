"""HalfCheetah.

Only what differs from the shared settings is stated.
"""

from vagram_jax.cli.configs import variants


def paper():
    """The settings of the paper's code.

    Returns:
      A `ConfigDict`.
    """
    config = variants.paper("halfcheetah")
    config.total_steps = config.replay_capacity = 400_000
    config.fit.weight_decay = 2e-5
    config.fit.patience = 1
    config.fit.max_epochs = 50
    config.real_fraction = (1.0, 0.05, 0.0, 10_000.0)
    config.updates_per_step = 40
    config.sac.critic_learning_rate = 3e-5
    config.sac.target_entropy = (-3.0,)
    return config


def quick():
    """The course of a curve on a few cores.

    Returns:
      A `ConfigDict`.
    """
    config = variants.quick("halfcheetah")
    config.sac.target_entropy = (-3.0,)
    return config


get_config = variants.named(quick=quick, paper=paper)
