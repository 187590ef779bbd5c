"""Humanoid, without forces and inertias in the observation, as in MBPO.

Only what differs from the shared settings is stated.
"""

from vagram_jax.cli.configs import variants


def paper():
    """The settings of the paper's code, which has them for dm_control's humanoid.

    Returns:
      A `ConfigDict`.
    """
    config = variants.paper("humanoid")
    config.observation = "truncated"
    config.total_steps = config.replay_capacity = 300_000
    config.fit.learning_rate = 5e-4
    config.fit.weight_decay = 3e-6
    config.fit.patience = 5
    config.imagine.horizon = (1, 5, 20_000, 300_000)
    config.imagine.keep_epochs = 20
    config.real_fraction = (0.8, 0.05, 0.0, 50_000.0)
    config.sac.critic_learning_rate = 1e-5
    config.sac.target_entropy = (-2.0,)
    return config


def quick():
    """The course of a curve on a few cores.

    Returns:
      A `ConfigDict`.
    """
    config = variants.quick("humanoid")
    config.observation = "truncated"
    config.sac.target_entropy = (-2.0,)
    return config


get_config = variants.named(quick=quick, paper=paper)
