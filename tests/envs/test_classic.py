"""The two small tasks against independent programs."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from vagram_jax import envs
from vagram_jax.envs import base, classic

CARTPOLE = classic.CartpoleSwingup()
CARTPOLE_STEP = jax.jit(CARTPOLE.step)  # As one program, not operation by operation.


def gymnasium_pendulum(angle, velocity):
    """Gymnasium's environment in a given state."""
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    env.state = np.array([angle, velocity], np.float64)
    return env


def test_pendulum_follows_gymnasium_step_by_step():
    env = classic.Pendulum()
    step = jax.jit(env.step)
    state = env.reset(jax.random.key(0))
    actions = np.random.default_rng(0).uniform(-1.5, 1.5, (200, 1))
    for action in actions:
        theirs = gymnasium_pendulum(*np.asarray(state.pipeline_state))
        obs, reward, terminated, _, _ = theirs.step(2 * action)
        state = step(state, jnp.asarray(action, jnp.float32))
        # Float32 at velocities of 8 and rewards of 16.
        np.testing.assert_allclose(state.obs, obs, atol=1e-5)
        np.testing.assert_allclose(state.reward, reward, atol=1e-5)
        assert state.done == terminated == 0


def test_pendulum_follows_gymnasium_for_an_episode(x64):
    env = classic.Pendulum()
    state = env.reset(jax.random.key(1))
    theirs = gymnasium_pendulum(*np.asarray(state.pipeline_state))
    actions = np.random.default_rng(1).uniform(-1, 1, (200, 1))

    def one_step(state, action):
        state = env.step(state, action)
        return state, (state.pipeline_state, state.reward)

    _, (physics, rewards) = jax.lax.scan(one_step, state, jnp.asarray(actions))
    assert physics.dtype == jnp.float64
    for t, action in enumerate(actions):
        _, reward, _, _, _ = theirs.step(2 * action)
        # Rounding, amplified when the pole passes upright.
        np.testing.assert_allclose(rewards[t], reward, atol=1e-10)
        np.testing.assert_allclose(physics[t, 1], theirs.state[1], atol=1e-10)
        wrapped = (theirs.state[0] + np.pi) % (2 * np.pi) - np.pi
        np.testing.assert_allclose(physics[t, 0], wrapped, atol=1e-10)


def test_pendulum_starts_where_gymnasium_does():
    env = classic.Pendulum("state")
    starts = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 4000)).obs
    assert starts.shape == (4000, 2)
    high = np.array([np.pi, 1])
    assert (np.abs(starts) <= high).all()
    # The mean and deviation of a uniform distribution, within five standard errors.
    np.testing.assert_allclose(starts.mean(0) / high, 0, atol=5 / np.sqrt(3 * 4000))
    np.testing.assert_allclose(starts.std(0) / high, 1 / np.sqrt(3), atol=0.02)


@pytest.mark.parametrize(
    ("angle", "tip"),
    [(0, (0, 1)), (np.pi / 2, (-1, 0)), (np.pi, (0, -1)), (-np.pi / 6, (0.5, 0.866))],
)
@pytest.mark.parametrize("observation", ["vector", "state"])
def test_pendulum_outline_is_a_rod_of_a_metre_that_stands_at_zero(
    angle, tip, observation
):
    env = classic.Pendulum(observation)
    state = env.reset(jax.random.key(0))
    state = state.replace(pipeline_state=jnp.array([angle, 3.0]))
    np.testing.assert_allclose(env.outline(state), [(0, 0), tip], atol=1e-3)
    assert (np.abs(env.outline(state)) <= np.array(env.reach) + 1e-6).all()


def test_pendulum_observations_are_of_one_state():
    vector, state = classic.Pendulum(), classic.Pendulum("state")
    action = jnp.array([0.3])
    a = vector.step(vector.reset(jax.random.key(2)), action)
    b = state.step(state.reset(jax.random.key(2)), action)
    angle, velocity = b.obs
    np.testing.assert_array_equal(a.obs, [jnp.cos(angle), jnp.sin(angle), velocity])
    assert a.reward == b.reward


def cartpole_state(x, angle, velocity, spin):
    physics = jnp.array([x, angle, velocity, spin], float)
    obs = CARTPOLE._observe(physics)
    return classic._state(physics, obs, jnp.zeros(()), jnp.zeros((), bool))


def equations_of_motion(_, physics, force):
    """From the Lagrangian of a cart and a rod, solved as two linear equations.

    M = 1, m = 0.1, l = 0.5 (half of the rod), g = 9.8:
    (M + m) a + m l cos b = force + m l sin w^2;  m l cos a + 4/3 m l^2 b = m g l sin.
    """
    _, angle, velocity, spin = physics
    mass = [[1.1, 0.05 * np.cos(angle)], [0.05 * np.cos(angle), 0.1 * 0.25 * 4 / 3]]
    load = [force + 0.05 * np.sin(angle) * spin**2, 0.05 * 9.8 * np.sin(angle)]
    return np.concatenate([[velocity, spin], np.linalg.solve(mass, load)])


@pytest.mark.parametrize("force", [-1.0, 0.0, 0.4])
def test_cartpole_solves_the_equations_of_motion(force, x64):
    state = cartpole_state(0.1, 2.0, 0.3, -0.5)
    start = np.asarray(state.pipeline_state)
    for _ in range(10):
        state = CARTPOLE_STEP(state, jnp.array([force]))
    wanted = integrate.solve_ivp(
        equations_of_motion, (0, 0.2), start, args=(10 * force,), rtol=1e-11, atol=1e-12
    ).y[:, -1]
    # The error of Runge-Kutta at 0.02 s.
    np.testing.assert_allclose(state.pipeline_state, wanted, atol=2e-6)


def energy(physics):
    _, angle, velocity, spin = physics
    kinetic = 0.55 * velocity**2 + 0.05 * np.cos(angle) * velocity * spin
    return kinetic + 0.1 * 0.25 * 2 / 3 * spin**2 + 0.1 * 9.8 * 0.5 * np.cos(angle)


def test_cartpole_without_force_keeps_its_energy(x64):
    state = cartpole_state(0.0, 1.0, 0.0, 0.0)
    before = energy(np.asarray(state.pipeline_state))
    final, _ = jax.lax.scan(
        lambda s, _: (CARTPOLE.step(s, jnp.zeros(1)), None), state, length=500
    )
    # Of a range of about 1 J, over the 10 s of an episode.
    np.testing.assert_allclose(
        energy(np.asarray(final.pipeline_state)), before, atol=1e-4
    )


@pytest.mark.parametrize(
    ("x", "angle", "tip"),
    [
        (0.0, 0.0, (0, 1)),
        (1.8, np.pi / 2, (2.8, 0)),
        (-1.8, -np.pi / 2, (-2.8, 0)),
        (0.5, np.pi, (0.5, -1)),
    ],
)
def test_cartpole_outline_is_a_pole_of_a_metre_on_the_cart(x, angle, tip):
    outline = CARTPOLE.outline(cartpole_state(x, angle, 1.0, 2.0))
    np.testing.assert_allclose(outline, [(x, 0), tip], atol=1e-6)
    assert (np.abs(outline) <= np.array(CARTPOLE.reach) + 1e-6).all()


def test_dt_is_how_long_a_step_lasts():
    assert classic.Pendulum().dt == gymnasium.make("Pendulum-v1").unwrapped.dt
    # With the pole upright nothing pulls at the cart.
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

    # The impulse acts on the cart alone; it takes energy and can't add any.
    np.testing.assert_allclose(momentum(velocity, spin), momentum(*free[2:]), rtol=1e-5)
    assert energy(after.pipeline_state) < energy(free)
    pushed, _ = jax.lax.scan(
        lambda s, _: (CARTPOLE.step(s, -jnp.ones(1)), None), after, length=300
    )
    assert pushed.obs[0] == jnp.float32(-1.8)


@pytest.mark.parametrize(
    "physics, action, reward",
    [
        ((0, 0, 0, 0), 0.0, 1.0),
        ((0, np.pi, 0, 0), 0.0, 0.0),
        ((0, 0, 0, 0), 1.0, 0.8),
        ((0, 0, 0, 0), 7.0, 0.8),
        ((2, 0, 0, 0), 0.0, 0.55),
        ((0, 0, 0, -5), 0.0, 0.55),
        ((0, np.pi / 2, 0, 0), 0.0, 0.5),
    ],
)
def test_cartpole_reward_at_the_margins(physics, action, reward):
    got = CARTPOLE._reward(
        jnp.array(physics, float), jnp.clip(jnp.array(action), -1, 1)
    )
    np.testing.assert_allclose(got, reward, atol=1e-6)  # Float32.


def test_cartpole_starts_hanging_and_can_be_moved():
    starts = jax.vmap(CARTPOLE.reset)(jax.random.split(jax.random.key(0), 1000))
    np.testing.assert_allclose(starts.obs.mean(0), [0, -1, 0, 0, 0], atol=2e-3)
    np.testing.assert_allclose(starts.obs[:, [0, 2, 3, 4]].std(0), 0.01, rtol=0.15)
    # Pumping energy into the pole by its own swing lifts it above the cart.
    state, highest = jax.tree.map(lambda x: x[0], starts), -1.0
    for _ in range(300):
        state = CARTPOLE_STEP(state, -jnp.sign(state.obs[4:] * state.obs[1:2]))
        highest = max(highest, float(state.obs[1]))
    assert highest > 0.9


@pytest.mark.parametrize("name", ["pendulum", "cartpole_swingup"])
def test_termination_agrees_with_done_and_takes_nan_for_an_end(name):
    env = envs.make(name)
    state = env.reset(jax.random.key(0))
    action = jnp.array([0.5])
    after = env.step(state, action)
    assert not env.termination(state.obs, action, after.obs)
    for dim in range(env.observation_size):
        assert env.termination(state.obs, action, after.obs.at[dim].set(jnp.nan))
        assert env.termination(state.obs.at[dim].set(jnp.nan), action, after.obs)
    broken = env.step(state, jnp.array([jnp.nan]))
    assert broken.done == 1
    assert not base.all_finite(broken.obs, broken.reward)


@pytest.mark.parametrize("name", ["pendulum", "cartpole_swingup"])
def test_step_is_the_same_vmapped(name):
    env = envs.make(name)
    states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 5))
    actions = jnp.linspace(-1, 1, 5)[:, None]
    step = jax.jit(env.step)
    batched = jax.jit(jax.vmap(env.step))(states, actions)
    for i in range(5):
        one = step(jax.tree.map(lambda x: x[i], states), actions[i])
        # Two compiled programs may fuse, and so round, otherwise.
        np.testing.assert_allclose(batched.obs[i], one.obs, atol=1e-5)
        np.testing.assert_allclose(batched.reward[i], one.reward, atol=1e-5)
