"""Any task of dm_control's suite, by domain and task.

    vagram train --config=dmc:cartpole-swingup

The settings are those of `gymnasium`.
"""

from vagram_jax.cli.configs import gymnasium


def get_config(variant="cartpole-swingup"):
    """Returns the config of a task.

    Args:
      variant: `"DOMAIN-TASK"`.
    """
    config = gymnasium.get_config()
    config.env = f"dmc:{variant}"
    return config
