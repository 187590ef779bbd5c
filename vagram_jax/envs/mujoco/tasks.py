"""Gymnasium's MuJoCo tasks (v5), on C MuJoCo or MJX.

Model files, substeps, observations, rewards, healthy ranges, initial noise and the
limit of 1,000 steps are Gymnasium's. Actions in [-1, 1] are scaled to the range of the
actuators.

Each task is a function that fills in a `Task`, which is written once for all physics.
To add one, write such a function and add its rows to `GYMNASIUM` and `envs.ENVS`.

Source: Gymnasium `envs/mujoco/*_v5.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

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
"""The tasks of this file, with their names in Gymnasium."""


class Task(NamedTuple):
    """The definition of a task, independent of the physics.

    Attributes:
      name: its name in messages.
      simulation: what it requires of its physics.
      observe: a physics state to `[obs_dim]`.
      healthy: a physics state to a bool scalar, False for NaN.
      rewards: `(physics state, controls [nu], is_healthy)` to the terms of the reward,
        by Gymnasium's names.
      state_from_obs: `[obs_dim]` to those parts of the physics state that `healthy`
        reads.
      start_noise: scale of the noise of `qpos` and `qvel` at a start.
      normal_velocities: whether the noise of `qvel` is normal instead of uniform.
    """

    name: str
    simulation: Simulation
    observe: Callable[[PhysicsState], jax.Array]
    healthy: Callable[[PhysicsState], jax.Array]
    rewards: Callable[[PhysicsState, jax.Array, jax.Array], Terms]
    state_from_obs: Callable[[jax.Array], PhysicsState]
    start_noise: float
    normal_velocities: bool = False


class MujocoEnv:
    """A task on one of the physics, as a `base.Env`.

    If C MuJoCo diverges in a step, the step is NaN and truncates the episode. In MJX a
    NaN state is unhealthy and terminates the episode. Training stores neither step.

    Args:
      task: the definition of the task.
      name: one of `physics.CHOICES`.

    Attributes:
      observation_size: number of dimensions of an observation.
      action_size: number of actuators.
      episode_length: 1,000 steps.
      dt: duration of a step in s.
      model: the `mujoco.MjModel`, for rendering.
      physics: the name of the physics, never "auto".
      recorded_metrics: none; the terms of the reward are for people to look at.

    Raises:
      EnvError: the physics is unknown, or a library isn't installed.
    """

    episode_length = 1000
    # Columns would make the tables of finished runs differ from new ones.
    recorded_metrics = ()

    def __init__(self, task: Task, name: str = "auto"):
        base.check_choice(f"env {task.name}: physics", name, physics.CHOICES)
        self.physics = physics.resolve(name)
        self._task, self.model = task, physics.load(task.simulation.file)
        self.dt = self.model.opt.timestep * task.simulation.frame_skip
        if self.physics == "c":
            self._physics = physics_c.CPhysics(self.model, task.simulation)
        else:
            is_warp = self.physics == "mjx_warp"
            self._physics = physics_mjx.MJXPhysics(self.model, task.simulation, is_warp)
        self.action_size = self.model.nu
        low, high = self.model.actuator_ctrlrange.T
        self._ctrl_center, self._ctrl_scale = (high + low) / 2, (high - low) / 2
        self.observation_size = len(jax.eval_shape(self._first_obs))

    def reset(self, key: jax.Array) -> base.State:
        """Returns the model's initial state plus noise.

        `pipeline_state` is a `PhysicsState`.
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
        """Returns the state after a control step; actions are clipped to [-1, 1].

        The `metrics` of the state are the terms of the reward.
        """
        ctrl = self._ctrl_center + self._ctrl_scale * jnp.clip(action, -1, 1)
        after = self._physics.step(state.pipeline_state, ctrl)
        is_healthy = self._task.healthy(after)
        terms = self._task.rewards(after, ctrl, is_healthy)
        done = (~is_healthy).astype(ctrl.dtype)
        return self._state(after, sum(terms.values()), done, terms)

    def termination(
        self, obs: jax.Array, action: jax.Array, next_obs: jax.Array
    ) -> jax.Array:
        """Returns whether `next_obs` is unhealthy; True if a number isn't finite."""
        is_healthy = self._task.healthy(self._task.state_from_obs(next_obs))
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
    """Returns Gymnasium's Hopper-v5: hop forward on one leg.

    A velocity above 100 ends the episode. `termination` doesn't see it, because
    velocities are clipped to 10 in the observation.

    Args:
      physics: one of `physics.CHOICES`.
    """

    def healthy(state: PhysicsState) -> jax.Array:
        _, height, angle = state.qpos[:3]
        others = jnp.concatenate([state.qpos[2:], state.qvel])
        is_upright = (height > 0.7) & (jnp.abs(angle) < 0.2)
        return is_upright & jnp.all(jnp.abs(others) < 100)

    return MujocoEnv(_walker("hopper", "hopper.xml", healthy), physics)


def walker2d(physics: str = "auto") -> MujocoEnv:
    """Returns Gymnasium's Walker2d-v5: walk forward on two legs in a plane."""

    def healthy(state: PhysicsState) -> jax.Array:
        _, height, angle = state.qpos[:3]
        return (height > 0.8) & (height < 2.0) & (jnp.abs(angle) < 1.0)

    return MujocoEnv(_walker("walker2d", "walker2d_v5.xml", healthy), physics)


def halfcheetah(physics: str = "auto") -> MujocoEnv:
    """Returns Gymnasium's HalfCheetah-v5: run in a plane. It never terminates."""

    def rewards(state: PhysicsState, ctrl: jax.Array, is_healthy: jax.Array) -> Terms:
        del is_healthy  # There is no reward for it.
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
        state_from_obs=_planar_state_from_obs,
        start_noise=0.1,
        normal_velocities=True,
    )
    return MujocoEnv(task, physics)


def ant(observation: str = "truncated", physics: str = "auto") -> MujocoEnv:
    """Returns Gymnasium's Ant-v5: run forward on four legs.

    Args:
      observation: `"truncated"` for the 27 positions and velocities that MBPO and the
        model-based literature use, or `"full"` for Gymnasium's 105 dimensions with
        contact forces. Both have the same reward, including its contact cost.
      physics: one of `physics.CHOICES`.

    Raises:
      EnvError: an unknown `observation`.
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
        state_from_obs=lambda obs: _partial_state(
            _prepend_zeros(2, obs[:13]), obs[13:27]
        ),
        start_noise=0.1,
        normal_velocities=True,
    )
    return MujocoEnv(task, physics)


def humanoid(observation: str = "truncated", physics: str = "auto") -> MujocoEnv:
    """Returns Gymnasium's Humanoid-v5: walk forward without falling.

    Args:
      observation: `"truncated"` for the 45 positions and velocities that MBPO and the
        model-based literature use, or `"full"` for Gymnasium's 348 dimensions with
        inertias and velocities of the bodies, and forces. Both have the same reward.
      physics: one of `physics.CHOICES`.

    Raises:
      EnvError: an unknown `observation`.
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
            "humanoid.xml", 5, _center_of_mass, (*bodies, "cfrc_ext")
        ),
        observe=observe,
        healthy=lambda state: (state.qpos[2] > 1.0) & (state.qpos[2] < 2.0),
        rewards=rewards,
        state_from_obs=lambda obs: _partial_state(
            _prepend_zeros(2, obs[:22]), obs[22:45]
        ),
        start_noise=0.01,
    )
    return MujocoEnv(task, physics)


def inverted_pendulum(physics: str = "auto") -> MujocoEnv:
    """Returns Gymnasium's InvertedPendulum-v5: balance a pole on a cart."""

    def healthy(state: PhysicsState) -> jax.Array:
        is_finite = base.all_finite(state.qpos, state.qvel)
        return is_finite & (jnp.abs(state.qpos[1]) <= 0.2)

    task = Task(
        name="inverted_pendulum",
        simulation=Simulation("inverted_pendulum.xml", 2, _root),
        observe=lambda state: jnp.concatenate([state.qpos, state.qvel]),
        healthy=healthy,
        rewards=lambda state, ctrl, is_healthy: {"reward_survive": 1.0 * is_healthy},
        state_from_obs=lambda obs: _partial_state(obs[:2], obs[2:]),
        start_noise=0.01,
    )
    return MujocoEnv(task, physics)


def inverted_double_pendulum(physics: str = "auto") -> MujocoEnv:
    """Returns Gymnasium's InvertedDoublePendulum-v5: balance two poles on a cart.

    An episode ends if the tip is at 1 m or lower in the last stage of the last substep.
    `termination` computes the height from the observed angles, which agrees to about
    1e-6 m.

    Args:
      physics: one of `physics.CHOICES`.
    """

    def observe(state: PhysicsState) -> jax.Array:
        angles, slider_force = state.qpos[1:], state.derived["qfrc_constraint"][:1]
        clipped = jnp.clip(jnp.concatenate([state.qvel, slider_force]), -10, 10)
        return jnp.concatenate(
            [state.qpos[:1], jnp.sin(angles), jnp.cos(angles), clipped]
        )

    def state_from_obs(obs: jax.Array) -> PhysicsState:
        joints = jnp.arctan2(obs[1:3], obs[3:5])
        pole_angles = jnp.cumsum(joints)  # from upright
        x = obs[0] + jnp.sum(0.6 * jnp.sin(pole_angles))  # Each pole is 0.6 m long.
        height = jnp.sum(0.6 * jnp.cos(pole_angles))
        tip = jnp.stack([x, jnp.zeros_like(x), height])
        qpos = jnp.concatenate([obs[:1], joints])
        return _partial_state(qpos, obs[5:8], site_xpos=tip[None])

    def rewards(state: PhysicsState, ctrl: jax.Array, is_healthy: jax.Array) -> Terms:
        del ctrl  # It costs nothing.
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
        state_from_obs=state_from_obs,
        start_noise=0.1,
        normal_velocities=True,
    )
    return MujocoEnv(task, physics)


def _walker(name: str, file: str, healthy: Callable[[PhysicsState], jax.Array]) -> Task:
    """Returns the task of Hopper or Walker2d, which share all but file and health."""

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
        state_from_obs=_planar_state_from_obs,
        start_noise=5e-3,
    )


def _root(model: Any, data: Any) -> Any:
    """Returns the position of the first joint."""
    del model
    return data.qpos[..., :1]


def _torso(model: Any, data: Any) -> Any:
    """Returns x and y of the first body."""
    del model
    return data.xpos[..., 1, :2]


def _center_of_mass(model: Any, data: Any) -> Any:
    """Returns x and y of the center of mass of all bodies."""
    mass = model.body_mass[:, None]
    return (mass * data.xipos[..., :2]).sum(-2) / mass.sum()


def _symmetric(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1, maxval=1)


def _planar_state_from_obs(obs: jax.Array) -> PhysicsState:
    """Returns a planar robot's state from an observation, which lacks its x."""
    num_joints = (obs.shape[0] + 1) // 2
    return _partial_state(
        _prepend_zeros(1, obs[: num_joints - 1]), obs[num_joints - 1 :]
    )


def _prepend_zeros(count: int, qpos: jax.Array) -> jax.Array:
    """Returns positions with zeros for the first ones, which observations lack."""
    return jnp.concatenate([jnp.zeros(count, qpos.dtype), qpos])


def _partial_state(
    qpos: jax.Array, qvel: jax.Array, **derived: jax.Array
) -> PhysicsState:
    """Returns a physics state without the fields that no observation contains."""
    missing = cast(Any, None)  # `healthy` doesn't read these fields.
    return PhysicsState(
        qpos=qpos,
        qvel=qvel,
        derived=derived,
        velocity=missing,
        diverged=missing,
        hidden=missing,
    )


def _is_full(name: str, observation: str) -> bool:
    choices = ("truncated", "full")
    base.check_choice(f"env {name}: observation", observation, choices)
    return observation == "full"
