"""MuJoCo's locomotion tasks, as Gymnasium defines them, on the physics of your choice.

Comes in: actions in [-1, 1]. Goes out: states in the form of `base.State`. Model files,
substeps, observations, rewards, healthy ranges, noise at the start and the limit of
1,000 steps are those of Gymnasium's v5; an action is scaled to the actuators' range.

Each task is a function at the end of this file that fills in a `Task`: what is
computed from the physics state, written once for C MuJoCo and MJX.

Source: Gymnasium `envs/mujoco/*_v5.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vagram_jax.envs import base
from vagram_jax.envs.mujoco import physics, physics_c, physics_mjx
from vagram_jax.envs.mujoco.physics import PhysicsState, Simulation

Terms = Mapping[str, jax.Array]

GYMNASIUM = {
    "ant": "Ant-v5",
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
    "inverted_pendulum": "InvertedPendulum-v5",
    "walker2d": "Walker2d-v5",
}
"""The tasks of this file, and what Gymnasium calls them."""


class Task(NamedTuple):
    """What makes a task of a simulation.

    Attributes:
      name: the task's.
      simulation: what it asks of its physics.
      observe: a physics state to `[obs_dim]`.
      healthy: a physics state to a bool scalar, False for NaN.
      rewards: physics state, `[nu]` controls and whether it is healthy to the terms
        whose sum is the reward, by Gymnasium's names.
      recall: `[obs_dim]` to as much of the physics state as `healthy` reads.
      start_noise: how far `qpos` and `qvel` are from the model's first state.
      normal_velocities: whether the noise of `qvel` is normal, and not uniform.
    """

    name: str
    simulation: Simulation
    observe: Callable[[PhysicsState], jax.Array]
    healthy: Callable[[PhysicsState], jax.Array]
    rewards: Callable[[PhysicsState, jax.Array, jax.Array], Terms]
    recall: Callable[[jax.Array], PhysicsState]
    start_noise: float
    normal_velocities: bool = False


class MujocoEnv:
    """A task on a physics, in the form of `base.Env`.

    A step after which C MuJoCo has diverged is truncated, and NaN: the loop drops it.
    In MJX a NaN ends the episode as unhealthy, and is dropped as well.

    Args:
      task: what is computed from the physics.
      name: one of `physics.CHOICES`.

    Attributes:
      observation_size: the number of dimensions of an observation.
      action_size: the number of actuators.
      episode_length: 1,000 steps.
      dt: the seconds of a step.
      model: the `mujoco.MjModel`, for rendering.
      physics: the name of the physics that computes, never "auto".

    Raises:
      EnvError: an unknown physics, or something to install.
    """

    episode_length = 1000

    def __init__(self, task: Task, name: str = "auto"):
        if name not in physics.CHOICES:
            raise base.EnvError(
                f"env {task.name}: physics={name!r}; accepted: "
                f"{', '.join(physics.CHOICES)}"
            )
        self.physics = physics.chosen(name)
        self._task, self.model = task, physics.load(task.simulation.file)
        self.dt = self.model.opt.timestep * task.simulation.frame_skip
        if self.physics == "c":
            self._physics = physics_c.CPhysics(self.model, task.simulation)
        else:
            is_warp = self.physics == "mjx_warp"
            self._physics = physics_mjx.MJXPhysics(self.model, task.simulation, is_warp)
        self.action_size = self.model.nu
        low, high = self.model.actuator_ctrlrange.T
        self._ctrl_middle, self._ctrl_reach = (high + low) / 2, (high - low) / 2
        self.observation_size = len(jax.eval_shape(self._first_obs))

    def reset(self, key: jax.Array) -> base.State:
        """The model's first state with noise.

        Args:
          key: a typed key.

        Returns:
          The first `State`; `pipeline_state` is a `PhysicsState`.
        """
        key_qpos, key_qvel = jax.random.split(key)
        scale, normal = self._task.start_noise, self._task.normal_velocities
        draw = jax.random.normal if normal else _symmetric
        state = self._physics.reset(
            scale * _symmetric(key_qpos, (self.model.nq,)),
            scale * draw(key_qvel, (self.model.nv,)),
        )
        ctrl = jnp.zeros(self.action_size)
        terms = self._task.rewards(state, ctrl, jnp.bool_(True))
        zero = jnp.zeros(())
        return self._state(state, zero, zero, dict.fromkeys(terms, zero))

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """A control step later.

        Args:
          state: as `reset` or the last step returned it.
          action: `[action_dim]`, in [-1, 1]; what lies beyond is clipped.

        Returns:
          The next `State`. Its `metrics` are the terms of the reward.
        """
        ctrl = self._ctrl_middle + self._ctrl_reach * jnp.clip(action, -1, 1)
        after = self._physics.step(state.pipeline_state, ctrl)
        is_healthy = self._task.healthy(after)
        terms = self._task.rewards(after, ctrl, is_healthy)
        done = (~is_healthy).astype(ctrl.dtype)
        return self._state(after, sum(terms.values()), done, terms)

    def termination(
        self, obs: jax.Array, action: jax.Array, next_obs: jax.Array
    ) -> jax.Array:
        """Whether the state that an observation shows is unhealthy.

        Args:
          obs: `[obs_dim]`.
          action: `[action_dim]`.
          next_obs: `[obs_dim]`.

        Returns:
          A bool scalar, True for NaN.
        """
        is_healthy = self._task.healthy(self._task.recall(next_obs))
        return ~(is_healthy & base.all_finite(obs, action, next_obs))

    def _state(self, state: PhysicsState, reward, done, terms: Terms) -> base.State:
        return base.State(
            pipeline_state=state,
            obs=self._task.observe(state),
            reward=reward,
            done=done,
            metrics=dict(terms),
            info={"truncation": state.diverged.astype(done.dtype)},
        )

    def _first_obs(self) -> jax.Array:
        noise = jnp.zeros(self.model.nq), jnp.zeros(self.model.nv)
        return self._task.observe(self._physics.reset(*noise))


def hopper(physics: str = "auto") -> MujocoEnv:
    """Hop forward on one leg: Gymnasium's Hopper-v5.

    Args:
      physics: one of `physics.CHOICES`.

    Returns:
      The environment. Its observation has velocities cut at 10, so that its
      `termination` can't see one beyond 100, which ends the episode.
    """

    def healthy(state: PhysicsState) -> jax.Array:
        _, height, angle = state.qpos[:3]
        others = jnp.concatenate([state.qpos[2:], state.qvel])
        is_upright = (height > 0.7) & (jnp.abs(angle) < 0.2)
        return is_upright & jnp.all(jnp.abs(others) < 100)

    return MujocoEnv(_walker("hopper", "hopper.xml", healthy), physics)


def walker2d(physics: str = "auto") -> MujocoEnv:
    """Walk forward on two legs in a plane: Gymnasium's Walker2d-v5.

    Args:
      physics: one of `physics.CHOICES`.

    Returns:
      The environment.
    """

    def healthy(state: PhysicsState) -> jax.Array:
        _, height, angle = state.qpos[:3]
        return (height > 0.8) & (height < 2.0) & (jnp.abs(angle) < 1.0)

    return MujocoEnv(_walker("walker2d", "walker2d_v5.xml", healthy), physics)


def halfcheetah(physics: str = "auto") -> MujocoEnv:
    """Run forward in a plane: Gymnasium's HalfCheetah-v5. It never terminates.

    Args:
      physics: one of `physics.CHOICES`.

    Returns:
      The environment.
    """

    def rewards(state: PhysicsState, ctrl: jax.Array, is_healthy: jax.Array) -> Terms:
        del is_healthy  # Nothing is paid for it.
        return {
            "reward_forward": state.velocity[0],
            "reward_ctrl": -0.1 * jnp.sum(ctrl**2),
        }

    task = Task(
        name="halfcheetah",
        simulation=Simulation("half_cheetah.xml", 5, _root),
        observe=lambda state: jnp.concatenate([state.qpos[1:], state.qvel]),
        healthy=lambda state: base.all_finite(state.qpos, state.qvel),
        rewards=rewards,
        recall=_recall_planar,
        start_noise=0.1,
        normal_velocities=True,
    )
    return MujocoEnv(task, physics)


def ant(observation: str = "truncated", physics: str = "auto") -> MujocoEnv:
    """Run forward on four legs: Gymnasium's Ant-v5.

    Args:
      observation: `"truncated"` for the 27 dimensions of positions and velocities that
        MBPO and the model-based literature use, or `"full"` for Gymnasium's 105, with
        contact forces. The reward is the same: it has a cost of contact in both.
      physics: one of `physics.CHOICES`.

    Returns:
      The environment.

    Raises:
      EnvError: another `observation`.
    """
    is_full = _is_full("ant", observation)

    def healthy(state: PhysicsState) -> jax.Array:
        height = state.qpos[2]
        is_finite = base.all_finite(state.qpos, state.qvel)
        return is_finite & (height >= 0.2) & (height <= 1.0)

    def observe(state: PhysicsState) -> jax.Array:
        forces = jnp.clip(state.derived["cfrc_ext"][1:], -1, 1).ravel()
        return jnp.concatenate([state.qpos[2:], state.qvel, *[forces] * is_full])

    def rewards(state: PhysicsState, ctrl: jax.Array, is_healthy: jax.Array) -> Terms:
        forces = jnp.clip(state.derived["cfrc_ext"], -1, 1)
        return {
            "reward_forward": state.velocity[0],
            "reward_survive": 1.0 * is_healthy,
            "reward_ctrl": -0.5 * jnp.sum(ctrl**2),
            "reward_contact": -5e-4 * jnp.sum(forces**2),
        }

    task = Task(
        name="ant",
        simulation=Simulation("ant.xml", 5, _torso, ("cfrc_ext",)),
        observe=observe,
        healthy=healthy,
        rewards=rewards,
        recall=lambda obs: _recalled(_unseen(2, obs[:13]), obs[13:27]),
        start_noise=0.1,
        normal_velocities=True,
    )
    return MujocoEnv(task, physics)


def humanoid(observation: str = "truncated", physics: str = "auto") -> MujocoEnv:
    """Walk forward without falling: Gymnasium's Humanoid-v5.

    Args:
      observation: `"truncated"` for the 45 dimensions of positions and velocities that
        MBPO and the model-based literature use, or `"full"` for Gymnasium's 348, with
        inertias, velocities of the bodies, and forces. The reward is the same.
      physics: one of `physics.CHOICES`.

    Returns:
      The environment.

    Raises:
      EnvError: another `observation`.
    """
    is_full = _is_full("humanoid", observation)
    bodies = ("cinert", "cvel", "qfrc_actuator") if is_full else ()

    def observe(state: PhysicsState) -> jax.Array:
        parts = [state.qpos[2:], state.qvel]
        if is_full:
            parts += [state.derived["cinert"][1:], state.derived["cvel"][1:]]
            parts += [state.derived["qfrc_actuator"][6:], state.derived["cfrc_ext"][1:]]
        return jnp.concatenate([part.ravel() for part in parts])

    def rewards(state: PhysicsState, ctrl: jax.Array, is_healthy: jax.Array) -> Terms:
        contact = 5e-7 * jnp.sum(state.derived["cfrc_ext"] ** 2)
        return {
            "reward_forward": 1.25 * state.velocity[0],
            "reward_survive": 5.0 * is_healthy,
            "reward_ctrl": -0.1 * jnp.sum(ctrl**2),
            "reward_contact": -jnp.minimum(contact, 10.0),
        }

    task = Task(
        name="humanoid",
        simulation=Simulation(
            "humanoid.xml", 5, _centre_of_mass, (*bodies, "cfrc_ext")
        ),
        observe=observe,
        healthy=lambda state: (state.qpos[2] > 1.0) & (state.qpos[2] < 2.0),
        rewards=rewards,
        recall=lambda obs: _recalled(_unseen(2, obs[:22]), obs[22:45]),
        start_noise=0.01,
    )
    return MujocoEnv(task, physics)


def inverted_pendulum(physics: str = "auto") -> MujocoEnv:
    """Balance a pole on a cart: Gymnasium's InvertedPendulum-v5.

    Args:
      physics: one of `physics.CHOICES`.

    Returns:
      The environment.
    """

    def healthy(state: PhysicsState) -> jax.Array:
        is_finite = base.all_finite(state.qpos, state.qvel)
        return is_finite & (jnp.abs(state.qpos[1]) <= 0.2)

    task = Task(
        name="inverted_pendulum",
        simulation=Simulation("inverted_pendulum.xml", 2, _root),
        observe=lambda state: jnp.concatenate([state.qpos, state.qvel]),
        healthy=healthy,
        rewards=lambda state, ctrl, is_healthy: {"reward_survive": 1.0 * is_healthy},
        recall=lambda obs: _recalled(obs[:2], obs[2:]),
        start_noise=0.01,
    )
    return MujocoEnv(task, physics)


def inverted_double_pendulum(physics: str = "auto") -> MujocoEnv:
    """Balance two poles on a cart: Gymnasium's InvertedDoublePendulum-v5.

    Args:
      physics: one of `physics.CHOICES`.

    Returns:
      The environment. It ends where the tip is no higher than 1 m in the last stage of
      the last substep; its `termination` takes the height from the observed angles,
      which is the same to a millionth of a metre or so.
    """

    def observe(state: PhysicsState) -> jax.Array:
        angles, slider_force = state.qpos[1:], state.derived["qfrc_constraint"][:1]
        limited = jnp.clip(jnp.concatenate([state.qvel, slider_force]), -10, 10)
        return jnp.concatenate(
            [state.qpos[:1], jnp.sin(angles), jnp.cos(angles), limited]
        )

    def recall(obs: jax.Array) -> PhysicsState:
        joints = jnp.arctan2(obs[1:3], obs[3:5])
        from_upright = jnp.cumsum(joints)
        x = obs[0] + jnp.sum(0.6 * jnp.sin(from_upright))  # Each pole has 0.6 m.
        height = jnp.sum(0.6 * jnp.cos(from_upright))
        tip = jnp.stack([x, jnp.zeros_like(x), height])
        qpos = jnp.concatenate([obs[:1], joints])
        return _recalled(qpos, obs[5:8], site_xpos=tip[None])

    def rewards(state: PhysicsState, ctrl: jax.Array, is_healthy: jax.Array) -> Terms:
        del ctrl  # It is free.
        x, _, height = state.derived["site_xpos"][0]
        _, lower, upper = state.qvel
        return {
            "reward_survive": 10.0 * is_healthy,
            "distance_penalty": -(0.01 * x**2 + (height - 2) ** 2),
            "velocity_penalty": -(1e-3 * lower**2 + 5e-3 * upper**2),
        }

    task = Task(
        name="inverted_double_pendulum",
        simulation=Simulation(
            "inverted_double_pendulum.xml", 5, _root, ("qfrc_constraint", "site_xpos")
        ),
        observe=observe,
        healthy=lambda state: state.derived["site_xpos"][0, 2] > 1,
        rewards=rewards,
        recall=recall,
        start_noise=0.1,
        normal_velocities=True,
    )
    return MujocoEnv(task, physics)


def _walker(name: str, file: str, healthy: Callable[[PhysicsState], jax.Array]) -> Task:
    """What Hopper and Walker2d have in common."""

    def rewards(state: PhysicsState, ctrl: jax.Array, is_healthy: jax.Array) -> Terms:
        return {
            "reward_forward": state.velocity[0],
            "reward_survive": 1.0 * is_healthy,
            "reward_ctrl": -1e-3 * jnp.sum(ctrl**2),
        }

    return Task(
        name=name,
        simulation=Simulation(file, 4, _root),
        observe=lambda state: jnp.concatenate(
            [state.qpos[1:], jnp.clip(state.qvel, -10, 10)]
        ),
        healthy=healthy,
        rewards=rewards,
        recall=_recall_planar,
        start_noise=5e-3,
    )


def _root(model: Any, data: Any) -> Any:
    """How far the first joint has slid."""
    del model
    return data.qpos[..., :1]


def _torso(model: Any, data: Any) -> Any:
    """Where the first body is, seen from above."""
    del model
    return data.xpos[..., 1, :2]


def _centre_of_mass(model: Any, data: Any) -> Any:
    """Where the mass of all bodies is, seen from above."""
    mass = model.body_mass[:, None]
    return (mass * data.xipos[..., :2]).sum(-2) / mass.sum()


def _symmetric(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1, maxval=1)


def _recall_planar(obs: jax.Array) -> PhysicsState:
    """A planar robot's state, of which an observation leaves out how far it got."""
    num_joints = (obs.shape[0] + 1) // 2
    return _recalled(_unseen(1, obs[: num_joints - 1]), obs[num_joints - 1 :])


def _unseen(count: int, qpos: jax.Array) -> jax.Array:
    """Positions with those in front that an observation leaves out."""
    return jnp.concatenate([jnp.zeros(count, qpos.dtype), qpos])


def _recalled(qpos: jax.Array, qvel: jax.Array, **derived: jax.Array) -> PhysicsState:
    """What an observation tells of a physics state."""
    return PhysicsState(
        qpos=qpos, qvel=qvel, derived=derived, velocity=None, diverged=None, hidden=None
    )


def _is_full(name: str, observation: str) -> bool:
    if observation not in ("truncated", "full"):
        raise base.EnvError(
            f"env {name}: observation={observation!r}; accepted: truncated, full"
        )
    return observation == "full"
