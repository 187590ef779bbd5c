"""Refuses runs that don't fit in memory, before anything large is computed.

The states of all seeds are measured without compiling, and the programs of an epoch as
soon as they are compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vagram_jax import mbpo
from vagram_jax.config import ConfigError
from vagram_jax.envs import base
from vagram_jax.mbpo import Fitted, MBPOConfig, MBPOState
from vagram_jax.run import devices
from vagram_jax.run.vectorized import Lanes, Programs


class Shapes(NamedTuple):
    """The shapes of what the programs of an epoch exchange, over all lanes.

    Attributes:
      state: of the training states.
      fitted: of the fitted models.
    """

    state: MBPOState
    fitted: Fitted


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


def shapes_of(
    programs: Programs, lanes: Lanes, layout: devices.Layout
) -> tuple[Shapes, dict[str, tuple[int, ...]]]:
    """The shapes of what the programs exchange, and of each metric in one lane.

    Args:
      programs: made for `layout`.
      lanes: on the devices.
      layout: the devices.

    Returns:
      Those of states and fitted models, and `()` or `(n,)` by the name of a metric.

    Raises:
      ValueError: a metric is neither a scalar nor a vector.
    """
    state = _sharded(jax.eval_shape(programs.init, lanes), layout)
    fitted, model_metrics = jax.eval_shape(programs.fit_model, state, lanes)
    fitted = _sharded(fitted, layout)
    _, metrics = jax.eval_shape(programs.improve_policy, state, fitted, lanes)
    _, _, own = jax.eval_shape(programs.evaluate, state, lanes, jnp.uint32(0))
    metrics |= {name: jax.eval_shape(lambda x: x[:, 0], x) for name, x in own.items()}
    return Shapes(state, fitted), _shapes_of_one_lane(metrics | model_metrics)


def check_epoch(
    programs: Programs,
    shapes: Shapes,
    lanes: Lanes,
    layout: devices.Layout,
    limit: float | None,
) -> None:
    """Compiles the programs of an epoch and refuses them if memory can't hold them.

    Args:
      programs: made for `layout`.
      shapes: from `shapes_of`.
      lanes: on the devices.
      layout: the devices.
      limit: the bytes that a device had free before the states were made, from
        `devices.memory_limit`.

    Raises:
      DeviceError: the lanes need more memory than a device has.
    """
    state, fitted = shapes
    options = {"num_lanes": len(lanes.seeds), "layout": layout, "limit": limit}
    devices.check_memory(programs.fit_model, state, lanes, **options)
    devices.check_memory(programs.improve_policy, state, fitted, lanes, **options)


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
