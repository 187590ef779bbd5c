"""MJX below the tasks: C MuJoCo's numbers in float32, and what it does with NaN.

A program of MJX takes long to compile on a CPU: there is one per task, and that of the
smallest task alone is compiled where slow tests are left out.
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
ALL = np.ones(NUM, bool)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)

# Float32 has 6e-8, relative to the largest number of a sum, and a control step is some
# dozens of them.
ROUNDED = 1e-5
# Where something is solved for, float32 stops the solver elsewhere, and MJX finds
# contacts with code of its own. Forces and accelerations differ most.
SOLVED, FORCES = 1e-3, 1e-2


class Lanes:
    """A task on both physics, in the same states."""

    def __init__(self, name, reach):
        self.c, self.mjx = (cases.ours(name, physics=which) for which in ("c", "mjx"))
        rng, model = np.random.default_rng(0), self.c.model
        near_and_far = 10 ** rng.uniform(-2, 0, (NUM, 1))
        qpos = model.qpos0 + 0.2 * near_and_far * rng.normal(size=(NUM, model.nq))
        qpos[:, 0] += reach * rng.uniform(-1, 1, NUM)  # up to its limits, if it has any
        qvel = 3 * near_and_far * rng.normal(size=(NUM, model.nv))
        self.c_states = cases.states_at(self.c, qpos, qvel)
        noise = np.float32(qpos - model.qpos0), np.float32(qvel)
        state = jax.jit(jax.vmap(self.mjx._physics.reset))(*noise)
        self.states = self.c_states.replace(pipeline_state=state)
        self.actions = cases.uniform(self.c, NUM)
        self.step = jax.jit(self._step)

    def _step(self, states, actions):
        """One step of episodes that begin anew in the first state."""
        first = cases.lane_of(self.states, 0)
        env = types.SimpleNamespace(reset=lambda key: first, step=self.mjx.step)
        step = functools.partial(episodes.step, env=env, episode_length=99)
        begun = jax.vmap(lambda state: episodes.EpisodeState(env_state=state, steps=7))
        return jax.vmap(step)(cases.keys(NUM), begun(states), actions)

    def with_physics(self, **changes):
        """The states with other physics."""
        state = self.states.pipeline_state.replace(**changes)
        return self.states.replace(pipeline_state=state)


@functools.cache
def lanes(name, reach=1.05):
    return Lanes(name, reach)


def near(pairs, lanes, tolerance):
    """Relative to one, and to the largest number that is wanted."""
    for found, wanted in pairs if np.any(lanes) else ():
        scale = 1.0 + np.abs(wanted[lanes]).max()
        np.testing.assert_allclose(
            found[lanes], wanted[lanes], rtol=0, atol=tolerance * scale
        )


def is_free(env, row, action):
    """Whether nothing touches and no joint is at a limit, says C MuJoCo."""
    data = mujoco.MjData(env.model)
    mujoco.mj_setState(env.model, data, row, cases.ROW)
    data.ctrl[:] = env._ctrl_reach * action
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
def test_a_step_is_that_of_c_mujoco(name):
    both = lanes(name)
    episode, data, valid = cases.bits(both.step(both.states, both.actions))
    wanted = cases.bits(jax.jit(jax.vmap(both.c.step))(both.c_states, both.actions))
    assert valid.all()
    np.testing.assert_array_equal(data.terminated, wanted.done)
    starts = zip(cases.rows(both.c, both.c_states), both.actions, strict=True)
    free = np.array([is_free(both.c, *start) for start in starts])
    state, theirs = episode.env_state.pipeline_state, wanted.pipeline_state
    warm = cases.place(both.c, mujoco.mjtState.mjSTATE_WARMSTART)
    moves = [
        (getattr(state, field), getattr(theirs, field))
        for field in ("qpos", "qvel", "velocity")
    ]
    forces = [(state.hidden["qacc_warmstart"], cases.rows(both.c, wanted)[:, warm])]
    forces += [(state.derived[field], theirs.derived[field]) for field in state.derived]
    shown = [(data.next_obs, wanted.obs), (data.reward, wanted.reward)]
    for kind, tolerance, coarser in ((free, ROUNDED, ROUNDED), (~free, SOLVED, FORCES)):
        near(shown, kind, tolerance)
        lasts = kind & ~data.terminated  # the others are at a start
        near(moves, lasts, tolerance)
        near(forces, lasts, coarser)
    assert state.derived.keys() == theirs.derived.keys()
    assert 3 < free.sum() < NUM or name not in (SMALLEST, "hopper")


def test_a_reset_is_that_of_c_mujoco():
    both = lanes(SMALLEST)
    found, wanted = (cases.bits(x.pipeline_state) for x in (both.states, both.c_states))
    names = ("qpos", "qvel", "velocity")
    pairs = [(getattr(found, name), getattr(wanted, name)) for name in names]
    near(pairs, ALL, 1e-7)
    assert not found.diverged.any()


def test_the_speed_is_from_the_point_that_the_state_carries():
    both = lanes(SMALLEST)
    hidden = both.states.pipeline_state.hidden
    moved = both.with_physics(hidden=hidden | {"point": hidden["point"] - 1.0})
    (episode, data, _), (other, _, _) = (
        cases.bits(both.step(states, both.actions)) for states in (both.states, moved)
    )
    goes_on = ~data.terminated
    found, wanted = (x.env_state.pipeline_state for x in (other, episode))
    faster = found.velocity - wanted.velocity
    near([(faster, np.full((NUM, 1), 1 / both.c.dt))], goes_on, 1e-6)
    np.testing.assert_array_equal(found.qpos, wanted.qpos)
    x = wanted.hidden["point"][goes_on]
    np.testing.assert_array_equal(x, wanted.qpos[goes_on, :1])


def test_the_solver_begins_with_what_the_state_carries():
    both = lanes(SMALLEST)
    hidden = both.states.pipeline_state.hidden
    other = jnp.full_like(hidden["qacc_warmstart"], 1e3)
    cold = both.with_physics(hidden=hidden | {"qacc_warmstart": other})
    found, wanted = (
        cases.bits(both.step(states, both.actions)[1].next_obs)
        for states in (cold, both.states)
    )
    # Where the cart is at its limit; elsewhere there is nothing to solve.
    assert 0 < (found != wanted).any(axis=1).sum() < NUM
    near([(found, wanted)], ALL, SOLVED)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_nan_ends_the_episode_as_unhealthy_and_is_dropped(value):
    both, lost = lanes(SMALLEST), 4
    wanted = cases.bits(both.step(both.states, both.actions))
    qvel = both.states.pipeline_state.qvel.at[lost, 0].set(value)
    found = cases.bits(both.step(both.with_physics(qvel=qvel), both.actions))
    others = np.delete(np.arange(NUM), lost)
    cases.assert_same_bits(cases.lane_of(found, others), cases.lane_of(wanted, others))
    episode, data, valid = found
    assert np.isnan(data.next_obs[lost]).any()
    assert data.terminated[lost]
    assert not data.truncated[lost]
    assert not valid[lost]
    first = cases.lane_of(cases.bits(both.states), 0)
    cases.assert_same_bits(cases.lane_of(episode.env_state, lost), first)
    assert episode.steps[lost] == 0


def test_an_action_that_is_no_number_is_dropped():
    both = lanes(SMALLEST)
    _, _, valid = both.step(both.states, both.actions.at[6].set(jnp.nan))
    assert np.flatnonzero(~valid).tolist() == [6]


def test_nothing_is_printed_when_mjx_is_loaded():
    code = "from vagram_jax import envs; envs.make('inverted_pendulum', physics='mjx')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
