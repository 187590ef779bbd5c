"""The interface between MuJoCo tasks and the physics that simulates them.

C MuJoCo (`physics_c`) and MJX (`physics_mjx`) return the same `PhysicsState`, so that a
task is written once. `load` reads Gymnasium's model files.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from flax import struct

from vagram_jax import user_code
from vagram_jax.envs import base

CHOICES = ("auto", "c", "mjx", "mjx_warp")
"""Physics by name: C MuJoCo, MJX, MJX on NVIDIA's Warp; `resolve` explains "auto"."""


@struct.dataclass(kw_only=True)
class PhysicsState:
    """The state of a simulation between two control steps.

    As in Gymnasium, the derived fields are those that MuJoCo's last substep computed.
    They describe the start of that substep, unlike `qpos` and `qvel`.

    Attributes:
      qpos: `[nq]`, joint positions in m and rad.
      qvel: `[nv]`, joint velocities in m/s and rad/s.
      velocity: `[k]` in m/s, mean velocity of the point `Simulation.position` over the
        last control step; 0 after a reset.
      derived: the fields listed in `Simulation.derived`, in MuJoCo's shapes.
      diverged: bool scalar, True if the simulation failed and all numbers are NaN.
      hidden: what else the physics needs for its next step; tasks don't read it.
    """

    qpos: jax.Array  # [nq]
    qvel: jax.Array  # [nv]
    velocity: jax.Array  # [k]
    derived: dict[str, jax.Array]
    diverged: jax.Array  # []
    hidden: Any


class Simulation(NamedTuple):
    """What a task requires of its physics.

    Attributes:
      file: name of one of Gymnasium's model files.
      frame_skip: number of substeps per control step.
      position: `(model, data)` to the point whose velocity is rewarded, `[..., k]` in
        m; `data` may have leading axes.
      derived: names of the fields of `MjData` that the task reads, besides `qpos` and
        `qvel`.
    """

    file: str
    frame_skip: int
    position: Callable[[Any, Any], Any]
    derived: tuple[str, ...] = ()


class Physics(Protocol):
    """A simulation as two pure functions. They are unbatched; the caller vmaps."""

    def reset(self, qpos_noise: jax.Array, qvel_noise: jax.Array) -> PhysicsState:
        """Returns the model's initial state plus noise `[nq]` and `[nv]`."""
        ...

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        """Returns the state after a control step, `ctrl` `[nu]` in actuator units."""
        ...


def resolve(name: str) -> str:
    """Returns the name of the physics to use; "auto" means "c".

    C MuJoCo is much faster than MJX on a CPU, and MJX on an accelerator hasn't been
    measured to be faster.
    """
    return "c" if name == "auto" else name


def load(file: str) -> Any:
    """Returns one of Gymnasium's models as a `mujoco.MjModel`.

    Args:
      file: its file name, such as `"hopper.xml"`.

    Raises:
      EnvError: MuJoCo or Gymnasium isn't installed, or there is no such file.
    """
    try:
        import mujoco
        import mujoco.batch

        assets = importlib.resources.files("gymnasium") / "envs" / "mujoco" / "assets"
    except ImportError as error:
        raise base.EnvError(
            f"env: {user_code.one_line(error)}; MuJoCo's tasks need mujoco>=3.17 and "
            'gymnasium>=1.0; pip install "vagram_jax[mujoco]"'
        ) from error
    # Gymnasium's files use an attribute that MuJoCo reports as deprecated, on stderr
    # and in a log file. The user can't change that.
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with importlib.resources.as_file(assets / file) as path:
            return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise base.EnvError(
            f"env: {file}: {user_code.one_line(error)}; the model files of "
            "gymnasium>=1.0 are accepted; reinstall gymnasium"
        ) from error
    finally:
        mujoco.set_mju_user_warning(None)
