"""The progress of a made-up run of two seeds that both diverge, one after the other."""

import numpy as np

from vagram_jax.run.rows import Progress

# In the order of the columns of model.csv.
SHAPES = {
    "model/valid": (),
    "model/epochs": (),
    "model/train_loss": (3,),
    "sac/q_mean": (),
    "sac/actor_loss": (),
    "pair": (2,),
}


def progress(
    env_steps,
    returns,
    diverged_at,
    metrics=None,
    *,
    seconds=4.0,
    speed=None,
    dropped=(0, 0),
):
    returns = np.float32(returns)
    return Progress(
        env_steps=env_steps,
        returns=returns,
        lengths=np.full(returns.shape, 3.5),
        metrics=metrics or {},
        metric_shapes=SHAPES,
        diverged_at=np.int32(diverged_at),
        diverged_by=np.where(np.int32(diverged_at) < 0, 0, 3),
        dropped=np.int32(dropped),
        seconds=seconds,
        memory={"memory_mb": 250, "device_memory_mb": None},
        seconds_per_step=speed,
    )


def metrics(epoch):
    """Metrics of two seeds; every number is different."""
    return {
        "pair": np.float32([[7, 8], [9, 10]]) + epoch,
        "sac/actor_loss": np.float32([epoch, 100 + epoch]),
        "sac/q_mean": np.float32([epoch + 0.5, 100.5 + epoch]),
        "model/epochs": np.int32([epoch, epoch + 1]),
        "model/train_loss": np.float32([[1, 2, 3], [4, 5, 6]]) + epoch,
        "model/valid": np.float32([0.5, 0.25]),
    }


ITERATIONS = [
    progress(8, [-8.0, -6.0], [-1, -1], seconds=4.0),
    progress(11, [-4.4, -3.6], [-1, -1], metrics(1), seconds=9.96),
    progress(14, [], [-1, 14], metrics(2), seconds=12.0, dropped=(0, 3)),
    progress(
        17,
        [-2.0, np.nan],
        [-1, 14],
        metrics(3),
        seconds=15.0,
        speed=1.6,
        dropped=(1, 3),
    ),
    progress(
        20,
        [np.nan, np.nan],
        [20, 14],
        metrics(4),
        seconds=16.0,
        speed=1.6,
        dropped=(1, 3),
    ),
]
