"""Any environment of Gymnasium with vector observations and actions, by its id.

    vagram train --config=gymnasium:Hopper-v5

The settings are the `quick` ones of the MuJoCo tasks, for fewer steps.
"""

from vagram_jax.cli.configs import mujoco


def get_config(variant="Pendulum-v1"):
    """Returns the config of an environment.

    Args:
      variant: the id, as for `gymnasium.make`.
    """
    config = mujoco.quick(f"gymnasium:{variant}")
    config.total_steps = config.replay_capacity = 10_000
    return config
