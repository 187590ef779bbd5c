"""Refuses runs that don't fit in memory, before anything large is computed.

The states of all seeds are measured without compiling, and the programs of an epoch as
soon as they are compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vagram_jax import mbpo
from vagram_jax.config import ConfigError
from vagram_jax.envs import base
from vagram_jax.mbpo import MBPOConfig, MBPOState
from vagram_jax.run import devices
from vagram_jax.run.vectorized import Lanes, Programs


def check_states(
    config: MBPOConfig, env: base.Env, *, num_lanes: int, layout: devices.Layout
) -> None:
    """Refuses states that can't fit in memory; compiles nothing.

    Args:
      config: the algorithm, from `check`.
      env: the environment.
      num_lanes: number of seeds that train at the same time.
      layout: the devices.

    Raises:
      ConfigError: the buffer of real transitions alone is too large for one seed.
      DeviceError: the seeds need more memory than a device has.
    """
    shapes = jax.eval_shape(
        lambda: mbpo.init(jax.random.key(0), env=env, config=config)
    )
    limit, rows = devices.memory_limit(), config.replay_capacity
    needed = devices.num_bytes(shapes.replay)
    if limit is not None and needed > limit:
        raise ConfigError(
            f"config: replay_capacity={rows}; it needs {needed / 1e9:.2f} GB a seed, "
            f"and {limit / 1e9:.2f} GB are free; at most {int(rows * limit / needed)}"
        )
    per_lane = devices.num_bytes(shapes)
    devices.check_size(per_lane, num_lanes=num_lanes, layout=layout)


def state_shapes(programs: Programs, lanes: Lanes, layout: devices.Layout) -> MBPOState:
    """The shapes of the training states of all lanes, on the devices.

    Args:
      programs: made for `layout`.
      lanes: on the devices.
      layout: the devices.
    """
    return _sharded(jax.eval_shape(programs.init, lanes), layout)


def check_epoch(
    programs: Programs, lanes: Lanes, layout: devices.Layout, limit: float | None
) -> dict[str, tuple[int, ...]]:
    """Compiles the programs of an epoch and refuses them if memory can't hold them.

    Args:
      programs: made for `layout`.
      lanes: on the devices.
      layout: the devices.
      limit: the bytes that a device had free before the states were made, from
        `devices.memory_limit`.

    Returns:
      Names of all metrics to their shapes in one lane, `()` or `(n,)`.

    Raises:
      DeviceError: the lanes need more memory than a device has.
      ValueError: a metric is neither a scalar nor a vector.
    """
    state = state_shapes(programs, lanes, layout)
    fitted, model_metrics = jax.eval_shape(programs.fit_model, state, lanes)
    fitted = _sharded(fitted, layout)
    _, metrics = jax.eval_shape(programs.improve_policy, state, fitted, lanes)
    _, _, own = jax.eval_shape(programs.evaluate, state, lanes, jnp.uint32(0))
    metrics |= {name: jax.eval_shape(lambda x: x[:, 0], x) for name, x in own.items()}
    options = {"num_lanes": len(lanes.seeds), "layout": layout, "limit": limit}
    devices.check_memory(programs.fit_model, state, lanes, **options)
    devices.check_memory(programs.improve_policy, state, fitted, lanes, **options)
    return _shapes_of_one_lane(metrics | model_metrics)


def _sharded(shapes: Any, layout: devices.Layout) -> Any:
    """Shapes of arrays that lie on the devices as those of training do."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding),
        shapes,
    )


def _shapes_of_one_lane(metrics: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each metric in one lane; raises unless a scalar or a vector."""
    shapes = {name: x.shape[1:] for name, x in metrics.items()}
    for name, shape in shapes.items():
        if len(shape) > 1:
            raise ValueError(
                f"metric {name}: shape {shape} in one lane; scalars and vectors are "
                "accepted"
            )
    return shapes
