"""What a MuJoCo task sees of the physics below it, and which physics there are.

Comes in: the name of one of Gymnasium's model files. Goes out: a MuJoCo model, and the
form in which C MuJoCo (`physics_c`) and MJX (`physics_mjx`) hand out its state, so that
a task is written once.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from flax import struct

from vagram_jax.envs import base

CHOICES = ("auto", "c", "mjx", "mjx_warp")
"""Physics by name: C MuJoCo, MJX, MJX on NVIDIA's Warp; "auto" is as `chosen` says."""


@struct.dataclass(kw_only=True)
class PhysicsState:
    """A simulation between two control steps.

    What is derived is what MuJoCo leaves behind after its last substep: but for `qpos`
    and `qvel` it describes the start of that substep, as in Gymnasium.

    Attributes:
      qpos: `[nq]`, positions of the joints in m and rad.
      qvel: `[nv]`, their velocities, per s.
      velocity: `[k]` m/s, of the point that `Simulation.position` names, mean over the
        last control step; 0 after a reset.
      derived: the fields that `Simulation.derived` names, in MuJoCo's shapes.
      diverged: bool scalar, the physics gave up: all numbers are NaN.
      hidden: what the physics needs for its next step.
    """

    qpos: jax.Array  # [nq]
    qvel: jax.Array  # [nv]
    velocity: jax.Array  # [k]
    derived: dict[str, jax.Array]
    diverged: jax.Array  # []
    hidden: Any


class Simulation(NamedTuple):
    """What a task asks of its physics.

    Attributes:
      file: the name of a model file of Gymnasium's.
      frame_skip: substeps of a control step.
      position: `(model, data)` to the point whose speed is rewarded, `[..., k]` in m,
        of `data` with or without leading axes.
      derived: names of fields of MuJoCo's data beside `qpos` and `qvel`.
    """

    file: str
    frame_skip: int
    position: Callable[[Any, Any], Any]
    derived: tuple[str, ...] = ()


class Physics(Protocol):
    """A simulation as pure functions, for one environment; the caller vmaps."""

    def reset(self, qpos_noise: jax.Array, qvel_noise: jax.Array) -> PhysicsState:
        """The model's first state plus `[nq]` and `[nv]`."""

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """A control step later, under `[nu]` in the units of the actuators."""


def chosen(name: str) -> str:
    """The physics that a name stands for.

    Args:
      name: one of `CHOICES`.

    Returns:
      Another than "auto". That is C MuJoCo: it is far ahead of MJX on a CPU, and
      nothing is measured yet that speaks for MJX on an accelerator.
    """
    return "c" if name == "auto" else name


def load(file: str) -> Any:
    """A model of Gymnasium's.

    Args:
      file: the name of its file, such as `"hopper.xml"`.

    Returns:
      A `mujoco.MjModel`.

    Raises:
      EnvError: MuJoCo or Gymnasium isn't installed, or has no such file.
    """
    try:
        import mujoco
        import mujoco.batch

        assets = importlib.resources.files("gymnasium") / "envs" / "mujoco" / "assets"
    except ImportError as error:
        raise base.EnvError(
            f"env: {base.one_line(error)}; MuJoCo's tasks need mujoco>=3.17 and "
            'gymnasium>=1.0; pip install "vagram_jax[mujoco]"'
        ) from error
    # Gymnasium's own files use an attribute that MuJoCo calls deprecated, on stderr
    # and in a log file; a user can do nothing about it.
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with importlib.resources.as_file(assets / file) as path:
            return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise base.EnvError(
            f"env: {file}: {base.one_line(error)}; the model files of gymnasium>=1.0 "
            "are accepted; reinstall gymnasium"
        ) from error
    finally:
        mujoco.set_mju_user_warning(None)
