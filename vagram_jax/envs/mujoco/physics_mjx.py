"""MJX, MuJoCo's physics in JAX, as the physics of a task, for accelerators.

A step is part of the compiled program and runs on its device. MJX computes in float32
with another collision code, so that its results follow C MuJoCo for a few steps, but
not for an episode.
"""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import jax
import jax.numpy as jnp

from vagram_jax import user_code
from vagram_jax.envs import base
from vagram_jax.envs.mujoco import physics

_POST_CONSTRAINT = "cfrc_ext"


class MJXPhysics:
    """MJX as a `physics.Physics`.

    MJX lacks the PGS solver, which Gymnasium's Humanoid uses. Newton's method solves
    the same problem in its place.

    Args:
      model: a `mujoco.MjModel`.
      simulation: what the task requires.
      warp: whether to compute with NVIDIA's Warp instead of JAX.

    Raises:
      EnvError: MJX or Warp is not installed, or MJX doesn't support the model.
    """

    def __init__(self, model: Any, simulation: physics.Simulation, warp: bool = False):
        self._mjx = _import(warp)
        self._simulation, self._c_model = simulation, model
        self._seconds = model.opt.timestep * simulation.frame_skip
        model, impl = _with_supported_solver(model), "warp" if warp else "jax"
        try:
            self._model = self._mjx.put_model(model, impl=impl)
            self._first = self._mjx.make_data(model, impl=impl)
        except Exception as error:
            raise base.EnvError(
                f"env: {simulation.file}: MJX doesn't support the model "
                f"({user_code.one_line(error)}); set physics=c"
            ) from error

    def reset(
        self, qpos_noise: jax.Array, qvel_noise: jax.Array
    ) -> physics.PhysicsState:
        """Returns the model's initial state plus noise `[nq]` and `[nv]`."""
        data = self._first.replace(
            qpos=self._first.qpos + qpos_noise, qvel=self._first.qvel + qvel_noise
        )
        data = self._mjx.forward(self._model, data)
        point = self._simulation.position(self._c_model, data)
        derived = self._derived(data)
        if _POST_CONSTRAINT in derived:  # Gymnasium computes them in steps only.
            derived[_POST_CONSTRAINT] = jnp.zeros_like(derived[_POST_CONSTRAINT])
        return self._state(data, point, point, derived)

    def step(
        self, state: physics.PhysicsState, ctrl: jax.Array
    ) -> physics.PhysicsState:
        """Returns the state after a control step, NaN if the simulation diverged.

        Args:
          state: as `reset` or the last step returned it.
          ctrl: `[nu]`, in actuator units.
        """
        data = self._first.replace(
            qpos=state.qpos,
            qvel=state.qvel,
            qacc_warmstart=state.hidden["qacc_warmstart"],
            ctrl=ctrl,
        )
        data, _ = jax.lax.scan(
            lambda data, _: (self._mjx.step(self._model, data), None),
            data,
            length=self._simulation.frame_skip,
        )
        point = self._simulation.position(self._c_model, data)
        before = state.hidden["point"]
        return self._state(data, before, point, self._derived(data))

    def _derived(self, data: Any) -> dict[str, jax.Array]:
        """Returns the fields of `Simulation.derived`."""
        if _POST_CONSTRAINT in self._simulation.derived:
            data = self._mjx.rne_postconstraint(self._model, data)
        # Some releases of MJX keep some fields in `_impl`.
        return {
            name: getattr(data._impl if hasattr(data._impl, name) else data, name)
            for name in self._simulation.derived
        }

    def _state(self, data: Any, before, point, derived) -> physics.PhysicsState:
        return physics.PhysicsState(
            qpos=data.qpos,
            qvel=data.qvel,
            velocity=(point - before) / self._seconds,
            derived=derived,
            diverged=jnp.zeros((), bool),  # NaN makes the state unhealthy instead.
            hidden={"qacc_warmstart": data.qacc_warmstart, "point": point},
        )


def _import(warp: bool) -> Any:
    """Imports MJX without its message on standard output that Warp is missing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from mujoco import mjx

            if warp:
                import warp as _  # noqa: F401 - checks that it is there
    except ImportError as error:
        name, extra = ("mjx_warp", "warp") if warp else ("mjx", "mujoco")
        raise base.EnvError(
            f"env: {user_code.one_line(error)}; physics={name} needs it; pip install "
            f'"vagram_jax[{extra}]"'
        ) from error
    return mjx


def _with_supported_solver(model: Any) -> Any:
    import mujoco

    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        model = copy.copy(model)
        model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return model
