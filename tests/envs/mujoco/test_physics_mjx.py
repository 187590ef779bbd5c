"""MJX agrees with C MuJoCo up to float32, and NaN ends an episode.

A program of MJX takes long to compile on a CPU. There is one per task, and only that of
the smallest task is compiled outside of the slow tests.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import mujoco
import mujoco_cases as cases
import numpy as np
import pytest

from vagram_jax.envs import episodes

NUM = 32
SMALLEST = "inverted_pendulum"
slow = functools.partial(pytest.param, marks=pytest.mark.slow)

# Float32 has 6e-8, relative to the largest number of a sum, and a control step has some
# dozens of sums.
ROUNDED = 1e-5
# With constraints, the solver stops at another iterate in float32, and MJX finds
# contacts with other code. Forces and accelerations differ most.
SOLVED, FORCES = 1e-3, 1e-2


class Lanes:
    """A task on both physics, in the same states."""

    def __init__(self, name):
        self.c, self.mjx = (
            cases.our_env(name, physics=which) for which in ("c", "mjx")
        )
        rng, model = np.random.default_rng(0), self.c.model
        scale = 10 ** rng.uniform(-2, 0, (NUM, 1))
        qpos = model.qpos0 + 0.2 * scale * rng.normal(size=(NUM, model.nq))
        qpos[:, 0] += 1.05 * rng.uniform(-1, 1, NUM)  # beyond its limits, if it has any
        qpos = np.float32(qpos)
        qvel = np.float32(3 * scale * rng.normal(size=(NUM, model.nv)))
        starts = cases.reset(cases.keys(NUM), env=self.c)
        self.c_states = cases.states_at(starts, qpos, qvel, env=self.c)
        noise = qpos - model.qpos0.astype(np.float32), qvel
        state = jax.jit(jax.vmap(self.mjx._physics.reset))(*noise)
        self.states = self.c_states.replace(pipeline_state=state)
        self.actions = cases.random_actions(self.c, NUM)
        self.step = jax.jit(self._step)

    def _step(self, states, actions):
        """Steps episodes that are reset to the first state."""
        first = cases.lane_of(self.states, 0)
        env = types.SimpleNamespace(reset=lambda key: first, step=self.mjx.step)
        step = functools.partial(episodes.step, env=env, episode_length=99)
        start = jax.vmap(lambda state: episodes.EpisodeState(env_state=state, steps=7))
        return jax.vmap(step)(cases.keys(NUM), start(states), actions)

    def with_physics(self, **changes):
        """Returns the states with some fields of the physics replaced."""
        state = self.states.pipeline_state.replace(**changes)
        return self.states.replace(pipeline_state=state)


lanes = functools.cache(Lanes)


def assert_close(pairs, selected, tolerance):
    """Compares the selected lanes, relative to one plus the largest expected number."""
    for actual, expected in pairs if np.any(selected) else ():
        scale = 1.0 + np.abs(expected[selected]).max()
        np.testing.assert_allclose(
            actual[selected], expected[selected], rtol=0, atol=tolerance * scale
        )


def is_unconstrained(env, row, action):
    """Returns whether C MuJoCo has no contact or joint limit during a control step."""
    data = mujoco.MjData(env.model)
    mujoco.mj_setState(env.model, data, row, cases.ROW)
    data.ctrl[:] = env._ctrl_scale * action
    constraints = 0
    for _ in range(env._task.simulation.frame_skip):
        mujoco.mj_step(env.model, data)
        constraints += data.nefc
    return constraints == 0


TASKS = [
    SMALLEST,
    *map(slow, ["ant", "halfcheetah", "hopper", "humanoid", "walker2d"]),
    slow("inverted_double_pendulum"),
]


@pytest.mark.parametrize("name", TASKS)
def test_resets_and_steps_agree_with_c_mujoco(name):
    both = lanes(name)
    start, c_start = (
        cases.to_numpy(x.pipeline_state) for x in (both.states, both.c_states)
    )
    fields = ("qpos", "qvel", "velocity")
    pairs = [(getattr(start, field), getattr(c_start, field)) for field in fields]
    assert_close(pairs, np.ones(NUM, bool), 1e-7)
    assert not start.diverged.any()

    episode, data, valid = cases.to_numpy(both.step(both.states, both.actions))
    expected = cases.lane_of(
        cases.to_numpy(cases.rollout(both.c_states, both.actions[:, None], env=both.c)),
        np.s_[:, 0],
    )
    assert valid.all()
    np.testing.assert_array_equal(data.terminated, expected.done)
    starts = zip(cases.rows(both.c, both.c_states), both.actions, strict=True)
    free = np.array([is_unconstrained(both.c, *start) for start in starts])
    state, c_state = episode.env_state.pipeline_state, expected.pipeline_state
    warm_start = cases.location(both.c, mujoco.mjtState.mjSTATE_WARMSTART)
    moves = [(getattr(state, field), getattr(c_state, field)) for field in fields]
    c_warm_start = cases.rows(both.c, expected)[:, warm_start]
    forces = [(state.hidden["qacc_warmstart"], c_warm_start)]
    forces += [
        (state.derived[field], c_state.derived[field]) for field in state.derived
    ]
    visible = [(data.next_obs, expected.obs), (data.reward, expected.reward)]
    for kind, tolerance, coarser in ((free, ROUNDED, ROUNDED), (~free, SOLVED, FORCES)):
        assert_close(visible, kind, tolerance)
        continues = kind & ~data.terminated  # The others have been reset.
        assert_close(moves, continues, tolerance)
        assert_close(forces, continues, coarser)
    assert state.derived.keys() == c_state.derived.keys()
    assert 3 < free.sum() < NUM or name not in (SMALLEST, "hopper")


def test_a_velocity_starts_from_the_point_in_the_state():
    both = lanes(SMALLEST)
    hidden = both.states.pipeline_state.hidden
    moved = both.with_physics(hidden=hidden | {"point": hidden["point"] - 1.0})
    (episode, data, _), (other, _, _) = (
        cases.to_numpy(both.step(states, both.actions))
        for states in (both.states, moved)
    )
    continues = ~data.terminated
    shifted, expected = (x.env_state.pipeline_state for x in (other, episode))
    faster = shifted.velocity - expected.velocity
    assert_close([(faster, np.full((NUM, 1), 1 / both.c.dt))], continues, 1e-6)
    np.testing.assert_array_equal(shifted.qpos, expected.qpos)
    point = expected.hidden["point"][continues]
    np.testing.assert_array_equal(point, expected.qpos[continues, :1])


def test_the_solver_starts_from_the_warm_start_in_the_state():
    both = lanes(SMALLEST)
    hidden = both.states.pipeline_state.hidden
    other = jnp.full_like(hidden["qacc_warmstart"], 1e3)
    cold = both.with_physics(hidden=hidden | {"qacc_warmstart": other})
    obs, expected = (
        cases.to_numpy(both.step(states, both.actions)[1].next_obs)
        for states in (cold, both.states)
    )
    # Where the cart is at its limit; elsewhere there is nothing to solve.
    assert 0 < (obs != expected).any(axis=1).sum() < NUM
    assert_close([(obs, expected)], np.ones(NUM, bool), SOLVED)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_nan_terminates_the_episode_and_is_dropped(value):
    both, lost = lanes(SMALLEST), 4
    expected = cases.to_numpy(both.step(both.states, both.actions))
    qvel = both.states.pipeline_state.qvel.at[lost, 0].set(value)
    result = cases.to_numpy(both.step(both.with_physics(qvel=qvel), both.actions))
    others = np.delete(np.arange(NUM), lost)
    cases.assert_same_bits(
        cases.lane_of(result, others), cases.lane_of(expected, others)
    )
    episode, data, valid = result
    assert np.isnan(data.next_obs[lost]).any()
    assert data.terminated[lost]
    assert not data.truncated[lost]
    assert not valid[lost]
    first = cases.lane_of(cases.to_numpy(both.states), 0)
    cases.assert_same_bits(cases.lane_of(episode.env_state, lost), first)
    assert episode.steps[lost] == 0


def test_a_step_with_a_nan_action_is_dropped():
    both = lanes(SMALLEST)
    _, _, valid = both.step(both.states, both.actions.at[6].set(jnp.nan))
    assert np.flatnonzero(~valid).tolist() == [6]


def test_loading_mjx_prints_nothing():
    code = "from vagram_jax.envs.mujoco import physics_mjx; physics_mjx._import(False)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
