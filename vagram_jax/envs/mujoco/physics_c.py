"""C MuJoCo as the physics of a task: exact, and the fastest for few environments.

A step computes the same bits as a loop over `mj_step`. The whole state of a simulation
is a row of doubles, which is part of the JAX state as uint32, so that JAX doesn't round
it. A step is therefore a pure function, and a checkpoint contains the complete state.
One call to the host steps all environments of a vmap, on MuJoCo's own threads.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax.envs import host
from vagram_jax.envs.mujoco import physics

_POST_CONSTRAINT = "cfrc_ext"
"""Contact forces, which Gymnasium computes in a separate call after a step."""

_WARNING_COUNT = 1000
"""The count of each warning before a step; a warning changes it, perhaps to 1."""


class CPhysics:
    """C MuJoCo as a `physics.Physics`.

    It keeps nothing between two calls but memory to compute in. JAX raises an error for
    derivatives through a step.

    Args:
      model: a `mujoco.MjModel`.
      simulation: what the task requires.
    """

    def __init__(self, model: Any, simulation: physics.Simulation):
        import mujoco

        self._model, self._simulation = model, simulation
        warnings = mujoco.mjtWarning
        # After each of these MuJoCo resets the state or ignores the controls.
        self._fatal = [
            warnings.mjWARN_BADQPOS.value,
            warnings.mjWARN_BADQVEL.value,
            warnings.mjWARN_BADQACC.value,
            warnings.mjWARN_BADCTRL.value,
        ]
        self._threads = _threads()
        self._idle = collections.defaultdict(list)  # batches by size
        self._idle_data: list[Any] = []
        with self._batch(1) as batch:
            batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE.value)
            self._initial_row = batch.state[0].copy()
            point = np.asarray(simulation.position(model, batch))[0]
            data = mujoco.MjData(model)
        # The fields that a task reads, in the order in which the host returns them.
        self._shapes = {
            "qpos": (model.nq,),
            "qvel": (model.nv,),
            "velocity": point.shape,
            **{name: getattr(data, name).shape for name in simulation.derived},
        }
        self._num_visible = sum(math.prod(shape) for shape in self._shapes.values())
        self._num_words = 2 * (len(self._initial_row) + len(point))
        self._host_reset = host.HostFunction(f"{simulation.file} reset", self._reset)
        self._host_step = host.HostFunction(f"{simulation.file} step", self._step)

    def reset(
        self, qpos_noise: jax.Array, qvel_noise: jax.Array
    ) -> physics.PhysicsState:
        """Returns the model's initial state plus noise `[nq]` and `[nv]`."""
        return self._call(self._host_reset, qpos_noise, qvel_noise)

    def step(
        self, state: physics.PhysicsState, ctrl: jax.Array
    ) -> physics.PhysicsState:
        """Returns the state after a control step.

        If the simulation diverged, the state is NaN and `diverged` is True. MuJoCo
        itself would continue from the model's initial state.

        Args:
          state: as `reset` or the last step returned it.
          ctrl: `[nu]`, in actuator units.
        """
        return self._call(self._host_step, state.hidden, ctrl)

    def _call(
        self, function: host.HostFunction, *arguments: jax.Array
    ) -> physics.PhysicsState:
        # Two arrays instead of one per field, because each costs as much as a small
        # simulation.
        result = (
            jax.ShapeDtypeStruct((self._num_visible,), jnp.result_type(float)),
            jax.ShapeDtypeStruct((self._num_words,), jnp.uint32),
        )
        visible, hidden = function(result, *arguments)
        fields, begin = {}, 0
        for name, shape in self._shapes.items():
            end = begin + math.prod(shape)
            fields[name], begin = visible[begin:end].reshape(shape), end
        return physics.PhysicsState(
            qpos=fields["qpos"],
            qvel=fields["qvel"],
            velocity=fields["velocity"],
            derived={name: fields[name] for name in self._simulation.derived},
            diverged=jnp.isnan(fields["qpos"][0]),
            hidden=hidden,
        )

    def _reset(self, qpos_noise, qvel_noise):
        leading, (qpos_noise, qvel_noise) = _flatten_axes(qpos_noise, qvel_noise)
        with self._batch(len(qpos_noise)) as batch:
            batch.state[...] = self._initial_row
            batch.qpos[...] += qpos_noise
            batch.qvel[...] += qvel_noise
            batch.forward()
            derived = self._derived(batch)
            if _POST_CONSTRAINT in derived:
                derived[_POST_CONSTRAINT] = np.zeros_like(derived[_POST_CONSTRAINT])
            point = self._simulation.position(self._model, batch)
            visible, rows = self._outputs(batch, point, point, derived)
        return _restore_axes(visible, rows, leading)

    def _step(self, hidden, ctrl):
        leading, (hidden, ctrl) = _flatten_axes(hidden, ctrl)
        rows = np.ascontiguousarray(hidden).view(np.float64)
        row, before = np.split(rows, [len(self._initial_row)], axis=1)
        with self._batch(len(rows)) as batch:
            batch.state[...] = row
            batch.ctrl[...] = ctrl
            diverged = self._advance(batch)
            point = self._simulation.position(self._model, batch)
            visible, rows = self._outputs(batch, before, point, self._derived(batch))
        # The row is NaN, too, so that the simulation stays diverged.
        visible[diverged] = rows[diverged] = np.nan
        return _restore_axes(visible, rows, leading)

    def _advance(self, batch: Any) -> np.ndarray:
        """Takes a control step; returns which simulations diverged, `[n]` bool."""
        import mujoco.batch

        # MuJoCo prints a warning only if its count is 0.
        batch.warning[:, self._fatal, 1] = _WARNING_COUNT
        failed = []
        try:
            batch.step(nstep=self._simulation.frame_skip)
        except mujoco.batch.SimulationError as error:
            failed = error.ids  # The others have taken their step.
        diverged = np.any(batch.warning[:, self._fatal, 1] != _WARNING_COUNT, axis=1)
        diverged[failed] = True
        return diverged

    def _derived(self, batch: Any) -> dict[str, np.ndarray]:
        """Returns the fields of `Simulation.derived`, `[n, ...]`."""
        derived = {
            name: batch.bind(name)
            for name in self._simulation.derived
            if name != _POST_CONSTRAINT
        }
        if _POST_CONSTRAINT in self._simulation.derived:
            derived[_POST_CONSTRAINT] = self._contact_forces(batch)
        return derived

    def _contact_forces(self, batch: Any) -> np.ndarray:
        import mujoco

        forces = []
        with _borrowed(self._idle_data, lambda: mujoco.MjData(self._model)) as data:
            for row in range(batch.nsim):
                batch.get_data(row, data)
                mujoco.mj_rnePostConstraint(self._model, data)
                forces.append(data.cfrc_ext.copy())
        return np.stack(forces)

    def _outputs(
        self, batch: Any, before, point, derived
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns copies of the visible fields and the hidden rows, `[n, ...]` each."""
        seconds = self._model.opt.timestep * self._simulation.frame_skip
        parts = [batch.qpos, batch.qvel, (point - before) / seconds]
        for name in self._simulation.derived:
            parts.append(derived[name].reshape(len(point), -1))
        rows = np.concatenate([batch.state, point], axis=1)
        return np.concatenate(parts, axis=1), rows

    def _batch(self, size: int) -> contextlib.AbstractContextManager:
        """Borrows memory for `size` simulations."""
        return _borrowed(self._idle[size], functools.partial(self._new_batch, size))

    def _new_batch(self, size: int) -> Any:
        import mujoco.batch

        # Contact forces need results of a step that only a persistent batch keeps.
        is_persistent = _POST_CONSTRAINT in self._simulation.derived
        batch = mujoco.batch.Batch(
            self._model, size, min(size, self._threads), persistent=is_persistent
        )
        # Reading a field makes the batch compute it from now on.
        self._simulation.position(self._model, batch)
        for name in set(self._simulation.derived) - {_POST_CONSTRAINT}:
            batch.bind(name)
        return batch


@contextlib.contextmanager
def _borrowed(idle: list[Any], make: Callable[[], Any]) -> Iterator[Any]:
    """Lends one of `idle`, or a new one, for the duration of the block.

    Several devices may call at the same time, each with its own memory.
    """
    try:
        memory = idle.pop()
    except IndexError:
        memory = make()
    try:
        yield memory
    finally:
        idle.append(memory)


def _threads() -> int:
    """Returns the number of cores per device: all devices of a CPU simulate."""
    on_cpu = jax.default_backend() == "cpu"
    devices = jax.local_device_count() if on_cpu else 1
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = len(os.sched_getaffinity(0))
    return max(1, cores // devices)


def _flatten_axes(*arrays: Any) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Returns the leading axes that vmap added, and the arrays with them flattened."""
    parts = [np.asarray(array) for array in arrays]
    leading = parts[0].shape[:-1]
    return leading, [part.reshape(math.prod(leading), -1) for part in parts]


def _restore_axes(visible: np.ndarray, rows: np.ndarray, leading: tuple[int, ...]):
    """Restores the leading axes; each double of a row becomes two uint32."""
    return visible.reshape(*leading, -1), rows.view(np.uint32).reshape(*leading, -1)
