"""Pendulum and cart-pole swing-up in pure JAX, for tests and for studies on a CPU.

Both use JAX's default float type. Angles are in radians and 0 is upright. They are
kept in [-pi, pi), so that float32 doesn't lose digits in a long episode.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax.envs import base


class Pendulum:
    """Pendulum swing-up with the dynamics and reward of Gymnasium's Pendulum-v1.

        velocity' = clip(velocity + (3g/(2l) sin(angle) + 3/(m l^2) torque) dt, -8, 8)
        angle'    = angle + velocity' dt
        reward    = -(angle^2 + 0.1 velocity^2 + 0.001 torque^2)

    where the reward uses the angle and velocity before the step, and torque = 2 action
    with the action clipped to [-1, 1]. It never terminates.

    Source: Gymnasium `envs/classic_control/pendulum.py`.

    Args:
      observation: `"vector"` for Gymnasium's (cos angle, sin angle, velocity), or
        `"state"` for (angle, velocity), where the angle jumps from pi to -pi.

    Attributes:
      observation_size: 3, or 2 for `"state"`.
      action_size: 1.
      episode_length: 200 steps (10 s).
      dt: 0.05 s.
      reach: half the width and half the height of a picture in m.

    Raises:
      EnvError: an unknown `observation`.
    """

    action_size = 1
    episode_length = 200
    dt = 0.05  # s
    reach = (1.0, 1.0)  # m

    _gravity, _mass, _length = 10.0, 1.0, 1.0  # m/s^2, kg, m
    _max_torque, _max_velocity = 2.0, 8.0  # N m, rad/s

    def __init__(self, observation: str = "vector"):
        sizes = {"vector": 3, "state": 2}
        base.check_choice("Pendulum: observation", observation, sizes)
        self._observation = observation
        self.observation_size = sizes[observation]

    def reset(self, key: jax.Array) -> base.State:
        """Draws an angle in [-pi, pi) and a velocity in [-1, 1), both uniform.

        `pipeline_state` is `[2]`, (angle, velocity).
        """
        high = jnp.array([jnp.pi, 1.0])
        physics = jax.random.uniform(key, (2,), minval=-high, maxval=high)
        return _state(
            physics, self._observe(physics), jnp.zeros(()), jnp.zeros((), bool)
        )

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """Returns the state 0.05 s later; `action` is `[1]`, clipped to [-1, 1]."""
        angle, velocity = state.pipeline_state
        torque = self._max_torque * jnp.clip(action[0], -1, 1)
        reward = -(angle**2 + 0.1 * velocity**2 + 0.001 * torque**2)
        acceleration = (
            3 * self._gravity / (2 * self._length) * jnp.sin(angle)
            + 3 / (self._mass * self._length**2) * torque
        )
        velocity = jnp.clip(
            velocity + acceleration * self.dt, -self._max_velocity, self._max_velocity
        )
        physics = jnp.array([_wrap(angle + velocity * self.dt), velocity])
        obs = self._observe(physics)
        return _state(physics, obs, reward, self.termination(state.obs, action, obs))

    def termination(
        self, obs: jax.Array, action: jax.Array, next_obs: jax.Array
    ) -> jax.Array:
        """Returns False, or True if a number isn't finite."""
        return ~base.all_finite(obs, action, next_obs)

    def outline(self, state: base.State) -> jax.Array:
        """Returns the two ends of the rod, `[2, 2]` (right, up) in m, for films.

        Positive angles are on the left, as Gymnasium draws them.
        """
        angle = state.pipeline_state[0]
        tip = self._length * jnp.array([-jnp.sin(angle), jnp.cos(angle)])
        return jnp.stack([jnp.zeros(2), tip])

    def _observe(self, physics: jax.Array) -> jax.Array:
        if self._observation == "state":
            return physics
        angle, velocity = physics
        return jnp.array([jnp.cos(angle), jnp.sin(angle), velocity])


class CartpoleSwingup:
    """Cart-pole swing-up: raise the pole and hold it in the middle of the track.

    The cart-pole of Barto, Sutton and Anderson (1983) as corrected by Florian (2007)
    and used in Gymnasium, without friction and with a continuous force:

        pull     = (force + m l w^2 sin(angle)) / (M + m)
        angular  = (g sin(angle) - cos(angle) pull)
                   / (l (4/3 - m cos^2(angle) / (M + m)))
        linear   = pull - m l angular cos(angle) / (M + m)

    where l is half the pole's length and w its angular velocity. Start, reward, masses,
    force and duration follow dm_control's `cartpole swingup` (Tassa et al. 2018,
    arXiv 1801.00690): the pole hangs down, and the reward of the state after a step
    is the product of four terms in [0, 1] for an upright pole, a centered cart, a small
    control and a small angular velocity. Two choices differ from dm_control:

    - A step lasts 0.02 s, as in Gymnasium, instead of 0.01 s, so that an episode of
      10 s has 500 steps instead of 1000. Each is one Runge-Kutta step, whose error over
      an episode is far below the rounding error of float32.
    - The track ends at 1.8 m in walls that stop the cart and leave the momentum of the
      pole unchanged. The task never terminates, so that all episodes have the same
      length and a low return never means a short episode.

    Observation: (x, cos angle, sin angle, velocity, angular velocity).

    Attributes:
      observation_size: 5.
      action_size: 1.
      episode_length: 500 steps.
      dt: 0.02 s.
      reach: half the width and half the height of a picture in m.
    """

    observation_size = 5
    action_size = 1
    episode_length = 500
    dt = 0.02  # s
    reach = (2.8, 1.0)  # m, the track and the pole

    _gravity, _cart_mass, _pole_mass, _half_length = 9.8, 1.0, 0.1, 0.5
    _force, _track = 10.0, 1.8  # N, m

    def reset(self, key: jax.Array) -> base.State:
        """Returns a hanging pole at rest in the middle, plus normal noise of 0.01.

        `pipeline_state` is `[4]`: x, angle and their velocities.
        """
        x, angle, *velocities = 0.01 * jax.random.normal(key, (4,))
        physics = jnp.array([x, _wrap(angle + jnp.pi), *velocities])
        obs = self._observe(physics)
        return _state(physics, obs, jnp.zeros(()), jnp.zeros((), bool))

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """Returns the state 0.02 s later; `action` is `[1]`, clipped to [-1, 1]."""
        control = jnp.clip(action[0], -1, 1)
        physics = self._integrate(state.pipeline_state, self._force * control)
        physics = self._stop_at_walls(physics)
        obs = self._observe(physics)
        done = self.termination(state.obs, action, obs)
        return _state(physics, obs, self._reward(physics, control), done)

    def termination(
        self, obs: jax.Array, action: jax.Array, next_obs: jax.Array
    ) -> jax.Array:
        """Returns False, or True if a number isn't finite."""
        return ~base.all_finite(obs, action, next_obs)

    def outline(self, state: base.State) -> jax.Array:
        """Returns the two ends of the pole, `[2, 2]` (right, up) in m, for films."""
        x, angle = state.pipeline_state[:2]
        cart = jnp.array([x, 0.0])
        pole = 2 * self._half_length * jnp.array([jnp.sin(angle), jnp.cos(angle)])
        return jnp.stack([cart, cart + pole])

    def _observe(self, physics: jax.Array) -> jax.Array:
        x, angle, velocity, spin = physics
        return jnp.array([x, jnp.cos(angle), jnp.sin(angle), velocity, spin])

    def _derivative(self, physics: jax.Array, force: jax.Array) -> jax.Array:
        """Returns the time derivative of `[4]`."""
        _, angle, velocity, spin = physics
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        mass = self._cart_mass + self._pole_mass
        pull = (force + self._pole_mass * self._half_length * spin**2 * sin) / mass
        inertia = self._half_length * (4 / 3 - self._pole_mass * cos**2 / mass)
        angular = (self._gravity * sin - cos * pull) / inertia
        linear = pull - self._pole_mass * self._half_length * angular * cos / mass
        return jnp.array([velocity, spin, linear, angular])

    def _integrate(self, physics: jax.Array, force: jax.Array) -> jax.Array:
        """Takes one step of the classical Runge-Kutta method of order four."""
        dt = self.dt
        first = self._derivative(physics, force)
        second = self._derivative(physics + dt / 2 * first, force)
        third = self._derivative(physics + dt / 2 * second, force)
        fourth = self._derivative(physics + dt * third, force)
        return physics + dt / 6 * (first + 2 * second + 2 * third + fourth)

    def _stop_at_walls(self, physics: jax.Array) -> jax.Array:
        """Puts a cart beyond the track at its end and stops it.

        The wall pushes only the cart, so that the pole keeps its generalized momentum
        4/3 m l^2 spin + m l cos(angle) velocity.
        """
        x, angle, velocity, spin = physics
        hits_wall = jnp.abs(x) > self._track
        spin_after = spin + 0.75 * jnp.cos(angle) * velocity / self._half_length
        return jnp.array(
            [
                jnp.clip(x, -self._track, self._track),
                _wrap(angle),
                jnp.where(hits_wall, 0, velocity),
                jnp.where(hits_wall, spin_after, spin),
            ]
        )

    def _reward(self, physics: jax.Array, control: jax.Array) -> jax.Array:
        """Returns dm_control's smooth swing-up reward, with its margins and weights."""
        x, angle, _, spin = physics
        upright = (1 + jnp.cos(angle)) / 2
        centered = (1 + _tolerance(x, margin=2)) / 2
        slow = (1 + _tolerance(spin, margin=5)) / 2
        small_control = (4 + (1 - control**2)) / 5
        return upright * centered * slow * small_control


def _tolerance(value: jax.Array, *, margin: float) -> jax.Array:
    """Returns dm_control's Gaussian tolerance: 1 at 0 and 0.1 at `margin`."""
    return 0.1 ** jnp.square(value / margin)


def _wrap(angle: jax.Array) -> jax.Array:
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


def _state(physics, obs, reward, done) -> base.State:
    return base.State(
        pipeline_state=physics,
        obs=obs,
        reward=reward,
        done=done.astype(obs.dtype),
        metrics={},
        info={},
    )
