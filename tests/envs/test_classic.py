"""Pendulum and cart-pole swing-up, compared with independent programs."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from vagram_jax import envs
from vagram_jax.envs import base, classic

PENDULUM = classic.Pendulum()
CARTPOLE = classic.CartpoleSwingup()
CARTPOLE_STEP = jax.jit(CARTPOLE.step)


@jax.jit
def play(states, actions):
    """Plays actions `[num, steps, 1]` from pendulum states `[num]`."""

    def one_step(state, action):
        state = PENDULUM.step(state, action)
        return state, state

    return jax.vmap(lambda *lane: jax.lax.scan(one_step, *lane)[1])(states, actions)


def gymnasium_pendulum(state):
    """Returns Gymnasium's environment in the given state."""
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    env.state = np.array(state, np.float64)
    return env


def wrap(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


def test_pendulum_steps_equal_gymnasiums():
    starts = jax.vmap(PENDULUM.reset)(jax.random.split(jax.random.key(0), 20))
    # Actions beyond the limits are clipped.
    actions = np.random.default_rng(0).uniform(-1.5, 1.5, (20, 10, 1)).astype("f4")
    after = jax.tree.map(np.asarray, play(starts, actions))
    before = np.concatenate(
        [starts.pipeline_state[:, None], after.pipeline_state[:, :-1]], axis=1
    )
    for lane, t in np.ndindex(actions.shape[:2]):
        plain = gymnasium_pendulum(before[lane, t])
        obs, reward, terminated, _, _ = plain.step(2 * actions[lane, t])
        # Float32 at velocities of 8 and rewards of 16.
        np.testing.assert_allclose(after.obs[lane, t], obs, atol=1e-5)
        np.testing.assert_allclose(after.reward[lane, t], reward, atol=1e-5)
        assert after.done[lane, t] == terminated == 0


def test_pendulum_episode_equals_gymnasiums_in_double_precision(x64):
    start = PENDULUM.reset(jax.random.key(1))
    plain = gymnasium_pendulum(start.pipeline_state)
    actions = np.random.default_rng(1).uniform(-1, 1, (200, 1))
    after = play(jax.tree.map(lambda leaf: leaf[None], start), actions[None])
    physics, rewards = after.pipeline_state[0], after.reward[0]
    assert physics.dtype == jnp.float64
    for t, action in enumerate(actions):
        _, reward, _, _, _ = plain.step(2 * action)
        expected = [wrap(plain.state[0]), plain.state[1]]
        # Rounding errors grow when the pole passes the upright position.
        np.testing.assert_allclose(physics[t], expected, atol=1e-10)
        np.testing.assert_allclose(rewards[t], reward, atol=1e-10)


def test_pendulum_starts_have_gymnasiums_distribution():
    env = classic.Pendulum("state")
    starts = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 4000)).obs
    assert starts.shape == (4000, 2)
    high = np.array([np.pi, 1])
    assert (np.abs(starts) <= high).all()
    # The mean and deviation of a uniform distribution, within five standard errors.
    np.testing.assert_allclose(starts.mean(0) / high, 0, atol=5 / np.sqrt(3 * 4000))
    np.testing.assert_allclose(starts.std(0) / high, 1 / np.sqrt(3), atol=0.02)


def test_pendulum_observations_show_the_same_state():
    action, key = jnp.array([0.3]), jax.random.key(2)
    step = jax.jit(lambda env: env.step(env.reset(key), action), static_argnums=0)
    vector, state = step(PENDULUM), step(classic.Pendulum("state"))
    angle, velocity = state.obs
    expected = [jnp.cos(angle), jnp.sin(angle), velocity]
    # Two compiled programs may round differently.
    np.testing.assert_allclose(vector.obs, expected, atol=1e-6)
    np.testing.assert_allclose(vector.reward, state.reward, rtol=1e-6)


@pytest.mark.parametrize(
    ("angle", "tip"),
    [(0, (0, 1)), (np.pi / 2, (-1, 0)), (np.pi, (0, -1)), (-np.pi / 6, (0.5, 0.866))],
)
def test_pendulum_outline_is_a_rod_of_1_m_that_is_upright_at_zero(angle, tip):
    for observation in ("vector", "state"):
        env = classic.Pendulum(observation)
        state = base.State(
            pipeline_state=jnp.array([angle, 3.0]),
            **dict.fromkeys(("obs", "reward", "done", "metrics", "info")),
        )
        np.testing.assert_allclose(env.outline(state), [(0, 0), tip], atol=1e-3)
        assert (np.abs(env.outline(state)) <= np.array(env.reach) + 1e-6).all()


def cartpole_state(x, angle, velocity, spin):
    physics = jnp.array([x, angle, velocity, spin], float)
    obs = CARTPOLE._observe(physics)
    return classic._state(physics, obs, jnp.zeros(()), jnp.zeros((), bool))


def equations_of_motion(_, physics, force):
    """The Lagrangian equations of a cart and a rod, solved as two linear equations.

    M = 1, m = 0.1, l = 0.5 (half of the rod), g = 9.8:
    (M + m) a + m l cos b = force + m l sin w^2;  m l cos a + 4/3 m l^2 b = m g l sin.
    """
    _, angle, velocity, spin = physics
    mass = [[1.1, 0.05 * np.cos(angle)], [0.05 * np.cos(angle), 0.1 * 0.25 * 4 / 3]]
    load = [force + 0.05 * np.sin(angle) * spin**2, 0.05 * 9.8 * np.sin(angle)]
    return np.concatenate([[velocity, spin], np.linalg.solve(mass, load)])


def energy(physics):
    _, angle, velocity, spin = physics
    kinetic = 0.55 * velocity**2 + 0.05 * np.cos(angle) * velocity * spin
    return kinetic + 0.1 * 0.25 * 2 / 3 * spin**2 + 0.1 * 9.8 * 0.5 * np.cos(angle)


def test_cartpole_solves_the_equations_of_motion_and_keeps_its_energy(x64):
    for force in (-1.0, 0.0, 0.4):
        state = cartpole_state(0.1, 2.0, 0.3, -0.5)
        start = np.asarray(state.pipeline_state)
        for _ in range(10):
            state = CARTPOLE_STEP(state, jnp.array([force]))
        options = {"args": (10 * force,), "rtol": 1e-11, "atol": 1e-12}
        solution = integrate.solve_ivp(equations_of_motion, (0, 0.2), start, **options)
        # The error of Runge-Kutta at 0.02 s.
        np.testing.assert_allclose(state.pipeline_state, solution.y[:, -1], atol=2e-6)
    state = cartpole_state(0.0, 1.0, 0.0, 0.0)
    before = energy(np.asarray(state.pipeline_state))
    for _ in range(500):
        state = CARTPOLE_STEP(state, jnp.zeros(1))
    # The energy has a range of about 1 J over the 10 s of an episode.
    after = energy(np.asarray(state.pipeline_state))
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "angle", "tip"),
    [
        (0.0, 0.0, (0, 1)),
        (1.8, np.pi / 2, (2.8, 0)),
        (-1.8, -np.pi / 2, (-2.8, 0)),
        (0.5, np.pi, (0.5, -1)),
    ],
)
def test_cartpole_outline_is_a_pole_of_1_m_on_the_cart(x, angle, tip):
    outline = CARTPOLE.outline(cartpole_state(x, angle, 1.0, 2.0))
    np.testing.assert_allclose(outline, [(x, 0), tip], atol=1e-6)
    assert (np.abs(outline) <= np.array(CARTPOLE.reach) + 1e-6).all()


def test_dt_is_the_duration_of_a_step():
    assert PENDULUM.dt == gymnasium.make("Pendulum-v1").unwrapped.dt
    # With the pole upright no force acts on the cart.
    after = CARTPOLE_STEP(cartpole_state(0.0, 0.0, 1.5, 0.0), jnp.zeros(1))
    moved = after.pipeline_state[0]
    np.testing.assert_allclose(moved, 1.5 * CARTPOLE.dt, rtol=1e-6)


def test_cartpole_stops_at_the_walls():
    state = cartpole_state(1.79, 2.5, 3.0, 0.5)
    free = CARTPOLE._integrate(state.pipeline_state, jnp.zeros(()))
    after = CARTPOLE_STEP(state, jnp.zeros(1))
    x, angle, velocity, spin = after.pipeline_state
    assert (x, velocity, after.done) == (jnp.float32(1.8), 0, 0)

    def momentum(velocity, spin):
        return 0.05 * jnp.cos(angle) * velocity + 0.1 * 0.25 * 4 / 3 * spin

    # The impulse acts only on the cart; it removes energy and can't add any.
    np.testing.assert_allclose(momentum(velocity, spin), momentum(*free[2:]), rtol=1e-5)
    assert energy(after.pipeline_state) < energy(free)
    for _ in range(300):
        after = CARTPOLE_STEP(after, -jnp.ones(1))
    assert after.obs[0] == jnp.float32(-1.8)


def test_cartpole_reward_at_the_margins():
    for physics, action, expected in [
        ((0, 0, 0, 0), 0.0, 1.0),
        ((0, np.pi, 0, 0), 0.0, 0.0),
        ((0, 0, 0, 0), 1.0, 0.8),
        ((2, 0, 0, 0), 0.0, 0.55),
        ((0, 0, 0, -5), 0.0, 0.55),
        ((0, np.pi / 2, 0, 0), 0.0, 0.5),
    ]:
        reward = CARTPOLE._reward(jnp.array(physics, float), jnp.array(action))
        np.testing.assert_allclose(reward, expected, atol=1e-6)  # Float32.
    upright = cartpole_state(0, 0, 0, 0)
    rewards = [CARTPOLE_STEP(upright, jnp.array([a])).reward for a in (1.0, 7.0)]
    assert rewards[0] == rewards[1] < 1


def test_cartpole_starts_hanging_and_can_be_swung_up():
    starts = jax.vmap(CARTPOLE.reset)(jax.random.split(jax.random.key(0), 1000))
    np.testing.assert_allclose(starts.obs.mean(0), [0, -1, 0, 0, 0], atol=2e-3)
    np.testing.assert_allclose(starts.obs[:, [0, 2, 3, 4]].std(0), 0.01, rtol=0.15)

    def pump_energy(state, _):
        state = CARTPOLE.step(state, -jnp.sign(state.obs[4:] * state.obs[1:2]))
        return state, state.obs[1]

    start = jax.tree.map(lambda leaf: leaf[0], starts)
    _, heights = jax.lax.scan(pump_energy, start, length=300)
    assert heights.max() > 0.9


@pytest.mark.parametrize("name", ["pendulum", "cartpole_swingup"])
def test_termination_agrees_with_done_and_is_true_for_nan(name):
    env, action = envs.make(name), jnp.array([0.5])
    step, ends = jax.jit(env.step), jax.jit(env.termination)
    state = env.reset(jax.random.key(0))
    after = step(state, action)
    assert not ends(state.obs, action, after.obs)
    for dim in range(env.observation_size):
        assert ends(state.obs, action, after.obs.at[dim].set(jnp.nan))
        assert ends(state.obs.at[dim].set(jnp.nan), action, after.obs)
    nan_action = step(state, jnp.array([jnp.nan]))
    assert nan_action.done == 1
    assert not base.all_finite(nan_action.obs, nan_action.reward)


@pytest.mark.parametrize("name", ["pendulum", "cartpole_swingup"])
def test_a_step_is_the_same_vmapped(name):
    env = envs.make(name)
    states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 5))
    actions = jnp.linspace(-1, 1, 5)[:, None]
    step, batched = jax.jit(env.step), jax.jit(jax.vmap(env.step))(states, actions)
    for i in range(5):
        one = step(jax.tree.map(lambda leaf: leaf[i], states), actions[i])
        # Two compiled programs may round differently.
        np.testing.assert_allclose(batched.obs[i], one.obs, atol=1e-5)
        np.testing.assert_allclose(batched.reward[i], one.reward, atol=1e-5)
