"""C MuJoCo below a task: exact, and the fastest for few environments.

Comes in: a state and controls. Goes out: the state a control step later, to the bit
what a loop over `mj_step` computes. The whole state of a simulation is a row of
doubles that travels through the program as uint32, so that JAX neither rounds nor
touches it: a step is a pure function, and what is saved is all there is. One callback
steps every environment of a vmapped call, on MuJoCo's own threads.
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

from vagram_jax.envs.mujoco import physics

_POST_CONSTRAINT = "cfrc_ext"
"""Contact forces, which Gymnasium computes itself after each step of MuJoCo's."""

_COUNTED = 1000
"""Warnings of a kind before a step. After one, MuJoCo may have reset them to one."""


class CPhysics:
    """C MuJoCo as a `physics.Physics`.

    Nothing is kept between two calls but memory to compute in. Reverse or forward
    differentiation through a step is refused by JAX.

    Args:
      model: a `mujoco.MjModel`.
      simulation: what the task asks for.
    """

    def __init__(self, model: Any, simulation: physics.Simulation):
        import mujoco

        self._model, self._simulation = model, simulation
        warnings = mujoco.mjtWarning
        # After each of these MuJoCo resets the state, or leaves out the controls.
        self._fatal = [
            warnings.mjWARN_BADQPOS.value,
            warnings.mjWARN_BADQVEL.value,
            warnings.mjWARN_BADQACC.value,
            warnings.mjWARN_BADCTRL.value,
        ]
        self._idle = collections.defaultdict(list)  # batches by their size and threads
        self._idle_data: list[Any] = []
        with self._batch(1, 1) as batch:
            batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE.value)
            self._first_row = batch.state[0].copy()
            point = np.asarray(simulation.position(model, batch))[0]
            data = mujoco.MjData(model)
        # What a task sees, in the order in which the callback hands it out.
        self._shapes = {
            "qpos": (model.nq,),
            "qvel": (model.nv,),
            "velocity": point.shape,
            **{name: getattr(data, name).shape for name in simulation.derived},
        }
        self._num_seen = sum(math.prod(shape) for shape in self._shapes.values())
        self._num_words = 2 * (len(self._first_row) + len(point))

    def reset(
        self, qpos_noise: jax.Array, qvel_noise: jax.Array
    ) -> physics.PhysicsState:
        """The model's first state plus noise, at rest otherwise.

        Args:
          qpos_noise: `[nq]`.
          qvel_noise: `[nv]`.

        Returns:
          The state.
        """
        return self._call(self._reset, qpos_noise, qvel_noise)

    def step(
        self, state: physics.PhysicsState, ctrl: jax.Array
    ) -> physics.PhysicsState:
        """The state a control step later.

        Args:
          state: as `reset` or the last step returned it.
          ctrl: `[nu]`, in the units of the actuators.

        Returns:
          The state. Where the simulation diverged it is NaN and says so; MuJoCo itself
          would go on from the model's first state.
        """
        return self._call(self._step, state.hidden, ctrl)

    def _call(self, function, *arguments: jax.Array) -> physics.PhysicsState:
        dtype = jnp.result_type(float)
        # Two arrays and not one per field: each costs as much as a small simulation.
        result = (
            jax.ShapeDtypeStruct((self._num_seen,), dtype),
            jax.ShapeDtypeStruct((self._num_words,), jnp.uint32),
        )
        call = functools.partial(function, _threads(), np.dtype(dtype))
        seen, hidden = jax.pure_callback(
            call, result, *arguments, vmap_method="broadcast_all"
        )
        fields, begin = {}, 0
        for name, shape in self._shapes.items():
            end = begin + math.prod(shape)
            fields[name], begin = seen[begin:end].reshape(shape), end
        return physics.PhysicsState(
            qpos=fields["qpos"],
            qvel=fields["qvel"],
            velocity=fields["velocity"],
            derived={name: fields[name] for name in self._simulation.derived},
            diverged=jnp.isnan(fields["qpos"][0]),
            hidden=hidden,
        )

    # From here on NumPy alone: a callback that calls JAX may wait for itself.

    def _reset(self, threads: int, dtype: np.dtype, qpos_noise, qvel_noise):
        leading, (qpos_noise, qvel_noise) = _flat(qpos_noise, qvel_noise)
        with self._batch(len(qpos_noise), threads) as batch:
            batch.state[...] = self._first_row
            batch.qpos[...] += qpos_noise
            batch.qvel[...] += qvel_noise
            batch.forward()
            derived = self._derived(batch)
            if _POST_CONSTRAINT in derived:
                derived[_POST_CONSTRAINT] = np.zeros_like(derived[_POST_CONSTRAINT])
            point = self._simulation.position(self._model, batch)
            seen, rows = self._found(batch, point, point, derived)
        return _shaped(seen.astype(dtype), rows, leading)

    def _step(self, threads: int, dtype: np.dtype, hidden, ctrl):
        leading, (hidden, ctrl) = _flat(hidden, ctrl)
        rows = np.ascontiguousarray(hidden).view(np.float64)
        row, before = np.split(rows, [len(self._first_row)], axis=1)
        with self._batch(len(rows), threads) as batch:
            batch.state[...] = row
            batch.ctrl[...] = ctrl
            diverged = self._advance(batch)
            point = self._simulation.position(self._model, batch)
            seen, rows = self._found(batch, before, point, self._derived(batch))
        seen[diverged] = rows[diverged] = np.nan  # The row, too: it stays diverged.
        return _shaped(seen.astype(dtype), rows, leading)

    def _advance(self, batch: Any) -> np.ndarray:
        """Whether each simulation broke down in this control step."""
        import mujoco.batch

        # Whatever was counted before doesn't matter, and only a first one is printed.
        batch.warning[:, self._fatal, 1] = _COUNTED
        failed = []
        try:
            batch.step(nstep=self._simulation.frame_skip)
        except mujoco.batch.SimulationError as error:
            failed = error.ids  # The others have been stepped.
        diverged = np.any(batch.warning[:, self._fatal, 1] != _COUNTED, axis=1)
        diverged[failed] = True
        return diverged

    def _derived(self, batch: Any) -> dict[str, np.ndarray]:
        """The fields that the task asked for, `[n, ...]`."""
        found = {
            name: batch.bind(name)
            for name in self._simulation.derived
            if name != _POST_CONSTRAINT
        }
        if _POST_CONSTRAINT in self._simulation.derived:
            found[_POST_CONSTRAINT] = self._contact_forces(batch)
        return found

    def _contact_forces(self, batch: Any) -> np.ndarray:
        import mujoco

        forces = []
        with _lent(self._idle_data, lambda: mujoco.MjData(self._model)) as data:
            for row in range(batch.nsim):
                batch.get_data(row, data)
                mujoco.mj_rnePostConstraint(self._model, data)
                forces.append(data.cfrc_ext.copy())
        return np.stack(forces)

    def _found(
        self, batch: Any, before, point, derived
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a task sees and what is hidden, copies both."""
        seconds = self._model.opt.timestep * self._simulation.frame_skip
        parts = [batch.qpos, batch.qvel, (point - before) / seconds]
        for name in self._simulation.derived:
            parts.append(derived[name].reshape(len(point), -1))
        rows = np.concatenate([batch.state, point], axis=1)
        return np.concatenate(parts, axis=1), rows

    def _batch(self, size: int, threads: int) -> contextlib.AbstractContextManager:
        """Memory for `size` simulations that nobody else uses meanwhile."""
        return _lent(self._idle[size, threads], lambda: self._new(size, threads))

    def _new(self, size: int, threads: int) -> Any:
        import mujoco.batch

        # MuJoCo keeps what follows a step's constraints only where asked to.
        keeps = _POST_CONSTRAINT in self._simulation.derived
        batch = mujoco.batch.Batch(
            self._model, size, min(size, threads), persistent=keeps
        )
        self._simulation.position(self._model, batch)  # Asks for its fields
        for name in set(self._simulation.derived) - {_POST_CONSTRAINT}:
            batch.bind(name)
        return batch


@contextlib.contextmanager
def _lent(idle: list[Any], make: Callable[[], Any]) -> Iterator[Any]:
    """One of `idle`, or a new one, for as long as the block lasts.

    Callbacks of several devices come at the same time, and memory is for one.
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
    """The cores of this process, shared by the devices that call back."""
    on_cpu = jax.default_backend() == "cpu"
    devices = jax.local_device_count() if on_cpu else 1
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = len(os.sched_getaffinity(0))
    return max(1, cores // devices)


def _flat(*arrays: Any) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """The leading axes that vmap made, and the arrays with one in their place."""
    arrays = [np.asarray(array) for array in arrays]
    leading = arrays[0].shape[:-1]
    return leading, [array.reshape(math.prod(leading), -1) for array in arrays]


def _shaped(seen: np.ndarray, rows: np.ndarray, leading: tuple[int, ...]):
    """Both with the leading axes that vmap made; doubles travel as pairs of words."""
    return seen.reshape(*leading, -1), rows.view(np.uint32).reshape(*leading, -1)
