"""Numbers that change with the environment steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Schedule:
    """A number that stays constant, or changes linearly between two environment steps.

    It is `start` until `first_step`, `end` from `last_step` on, and linear in between.
    With `first_step == last_step` it jumps there.

    Attributes:
      start: value at first.
      end: value in the end.
      first_step: environment step at which the change begins.
      last_step: environment step at which it ends, at least `first_step`.
    """

    start: float
    end: float
    first_step: float = 0.0
    last_step: float = 0.0


def constant(number: float) -> Schedule:
    """Returns the schedule that is always `number`."""
    return Schedule(number, number)


def value(schedule: Schedule | float, env_steps: jax.Array | int) -> jax.Array:
    """Returns the value of a schedule after `env_steps` steps, a float32 scalar.

    A plain number counts as a constant schedule.
    """
    if not isinstance(schedule, Schedule):
        return jnp.asarray(schedule, jnp.float32)
    first, last = schedule.first_step, schedule.last_step
    width = jnp.where(last > first, last - first, 1.0)
    ramp = jnp.clip((env_steps - first) / width, 0.0, 1.0)
    share = jnp.where(last > first, ramp, env_steps >= first)
    return jnp.asarray(schedule.start + share * (schedule.end - schedule.start))


def is_constant(schedule: Schedule | float) -> bool:
    """Returns whether a schedule of plain numbers never changes."""
    return not isinstance(schedule, Schedule) or schedule.start == schedule.end


def bounds(schedule: Schedule | float) -> tuple[float, float]:
    """Returns the lowest and the highest value that a schedule takes."""
    if not isinstance(schedule, Schedule):
        return schedule, schedule
    return min(schedule.start, schedule.end), max(schedule.start, schedule.end)


def to_plain(schedule: Schedule | float) -> Any:
    """Returns what JSON stores of a schedule: one number, or a list of four."""
    if not isinstance(schedule, Schedule):
        return schedule
    if is_constant(schedule):
        return schedule.start
    return [schedule.start, schedule.end, schedule.first_step, schedule.last_step]
