"""MuJoCo's tasks against Gymnasium's v5: the same numbers, ends and starts."""

from __future__ import annotations

import copy
import sys
import types

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import mujoco_cases as cases
import numpy as np
import pytest
from scipy import stats

from vagram_jax import envs
from vagram_jax.envs.mujoco import tasks

TASKS = sorted(tasks.GYMNASIUM)
OBSERVATIONS = [
    *((name, "") for name in TASKS if name not in cases.HIDDEN),
    *((name, form) for name in cases.HIDDEN for form in ("truncated", "full")),
]
PLANAR = ("hopper", "walker2d", "halfcheetah")
BALANCING = ("inverted_pendulum", "inverted_double_pendulum")

# Float32: a few roundings, of numbers and of what they are sums of. An angle of many
# turns has lost digits before its sine is taken.
NEAR = {"rtol": 1e-5, "atol": 3e-6}


def anywhere(env, num, seed=0):
    """Positions and velocities near the start and far from it, `[num, ...]`."""
    rng = np.random.default_rng(seed)
    near_and_far = 10 ** rng.uniform(-3, 0, (num, 1))
    qpos = env.model.qpos0 + near_and_far * rng.normal(size=(num, env.model.nq))
    if not env.model.jnt_limited[0]:
        qpos[:, 0] += rng.uniform(-100, 100, num)
    return qpos, 10 * near_and_far * rng.normal(size=(num, env.model.nv))


def their_step(plain, action):
    """What Gymnasium makes of an action in [-1, 1]."""
    low, high = plain.model.actuator_ctrlrange.T.astype(action.dtype)
    ctrl = (high + low) / 2 + (high - low) / 2 * np.clip(action, -1, 1)
    obs, reward, terminated, _, info = plain.step(ctrl)
    terms = {name: x for name, x in info.items() if "reward" in name or "pena" in name}
    return obs, reward, terminated, terms


def follow(env, plain, starts, actions):
    """Steps both, compares all that they show, and gives what ours made."""
    found = cases.bits(cases.played(starts, actions, env=env))
    starts = cases.bits(starts)
    for lane, row in enumerate(cases.rows(env, starts)):
        cases.put(plain, row)
        np.testing.assert_array_equal(row, cases.their_row(plain))
        np.testing.assert_allclose(starts.obs[lane], plain._get_obs(), **NEAR)
        for t, action in enumerate(np.asarray(actions[lane])):
            obs, reward, terminated, terms = their_step(plain, action)
            after = cases.lane_of(found, (lane, t))
            # To the bit, in doubles.
            np.testing.assert_array_equal(
                cases.rows(env, after), cases.their_row(plain)
            )
            np.testing.assert_allclose(after.obs, obs, **NEAR)
            assert set(after.metrics) == set(terms)
            for name, term in terms.items():
                np.testing.assert_allclose(after.metrics[name], term, **NEAR)
            largest = max(map(abs, terms.values()))
            np.testing.assert_allclose(after.reward, reward, atol=1e-6 * largest + 1e-6)
            assert after.done == terminated
    # Otherwise Gymnasium's would be at its start again, and ours NaN.
    assert not found.pipeline_state.diverged.any()
    assert not found.info["truncation"].any()
    return found


@pytest.mark.parametrize(("name", "observation"), OBSERVATIONS)
def test_a_task_is_gymnasiums_from_any_state(name, observation):
    env, plain = cases.ours(name, observation), cases.theirs(name, observation)
    assert plain.observation_space.shape == (env.observation_size,)
    starts = cases.states_at(env, *anywhere(env, 200))
    # Beyond the limits, too, where an action is clipped.
    found = follow(env, plain, starts, cases.uniform(env, 200, 1, reach=1.3))
    assert 0 < found.done.sum() < 200 or name == "halfcheetah"


@pytest.mark.parametrize(("name", "observation"), OBSERVATIONS)
def test_a_task_is_gymnasiums_for_a_hundred_steps(name, observation):
    env, plain = cases.ours(name, observation), cases.theirs(name, observation)
    starts = jax.jit(jax.vmap(env.reset))(cases.keys(3))
    found = follow(env, plain, starts, cases.uniform(env, 3, 100))
    assert found.obs.shape == (3, 100, env.observation_size)


def test_a_task_is_gymnasiums_in_double_precision(x64):
    env, plain = envs.make("humanoid"), cases.theirs("humanoid", "truncated")
    state = jax.jit(env.reset)(jax.random.key(0))
    cases.put(plain, cases.rows(env, state))
    step, actions = jax.jit(env.step), np.random.default_rng(0).uniform(-1, 1, (20, 17))
    for action in actions:
        state = step(state, action)
        obs, reward, _, _ = their_step(plain, action)
        assert state.obs.dtype == state.reward.dtype == jnp.float64
        np.testing.assert_array_equal(state.obs, obs)
        np.testing.assert_allclose(state.reward, reward, rtol=1e-13)
    np.testing.assert_array_equal(cases.rows(env, state), cases.their_row(plain))


@pytest.mark.parametrize(
    ("name", "limit"),
    [("humanoid", 0.4), ("inverted_pendulum", 3.0), ("hopper", 1.0)],
)
def test_an_action_is_scaled_to_the_actuators_and_clipped(name, limit):
    env = cases.ours(name)
    levels = np.float32([0.5, -1.0, 7.0, -1e30, np.inf])
    states = jax.vmap(env.reset)(jnp.stack([jax.random.key(1)] * len(levels)))
    actions = np.tile(levels[:, None, None], (1, 1, env.action_size))
    after = cases.played(states, actions, env=env)
    for lane, level in enumerate(np.clip(levels, -1, 1)):
        row = cases.rows(env, after)[lane, 0]
        ctrl = cases.part(env, row, mujoco.mjtState.mjSTATE_CTRL)
        np.testing.assert_array_equal(ctrl, [np.float32(limit) * level] * len(ctrl))
    assert np.isfinite(after.obs).all()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_gymnasiums_pace(name):
    env, spec = cases.ours(name), gymnasium.spec(tasks.GYMNASIUM[name])
    assert env.episode_length == spec.max_episode_steps == 1000
    assert env.dt == cases.theirs(name).dt


# Starts


def position(env, row):
    return cases.part(env, row, mujoco.mjtState.mjSTATE_QPOS) - env.model.qpos0


def velocity(env, row):
    return cases.part(env, row, mujoco.mjtState.mjSTATE_QVEL)


@pytest.mark.parametrize("name", TASKS)
def test_starts_are_distributed_as_gymnasiums(name):
    env, plain = cases.ours(name), cases.theirs(name)
    states = jax.jit(jax.vmap(env.reset))(cases.keys(600))
    plain.reset(seed=0)
    found, wanted = list(cases.rows(env, states)), []
    for _ in range(600):
        plain.reset()
        wanted.append(cases.their_row(plain))
    for noise in (position, velocity):
        ours, theirs = (np.array([noise(env, x) for x in y]) for y in (found, wanted))
        assert np.abs(ours).max() <= 1.1 * np.abs(theirs).max()
        # The same distribution, each number apart from all others.
        assert stats.ks_2samp(ours.ravel(), theirs.ravel()).pvalue > 1e-3
        assert len(np.unique(ours)) > 0.98 * ours.size
    noise = np.array([[*position(env, row), *velocity(env, row)] for row in found])
    apart = np.corrcoef(noise.T) - np.eye(noise.shape[1])
    assert np.abs(apart).max() < 5 / np.sqrt(600)


@pytest.mark.parametrize("name", TASKS)
def test_a_start_has_neither_a_reward_nor_a_past(name):
    env = cases.ours(name)
    state = env.reset(jax.random.key(0))
    assert state.reward == state.done == state.info["truncation"] == 0
    assert not any(state.metrics.values())
    row = cases.rows(env, state)
    for component in (mujoco.mjtState.mjSTATE_TIME, mujoco.mjtState.mjSTATE_CTRL):
        assert not cases.part(env, row, component).any()


# Terminations

EDGES = {
    "ant": {2: [0.2, 1.0]},
    "halfcheetah": {},
    "hopper": {1: [0.7], 2: [-0.2, 0.2], 3: [-100.0, 100.0]},
    "humanoid": {2: [1.0, 2.0]},
    "inverted_double_pendulum": {1: [-1.0, 1.0], 2: [-1.0, 1.0]},
    "inverted_pendulum": {1: [-0.2, 0.2]},
    "walker2d": {1: [0.8, 2.0], 2: [-1.0, 1.0]},
}
"""Positions, by their number, where an episode ends or, in the double pendulum, may."""


def at_the_edges(env, name, num):
    """Float32 positions and velocities, half of them with each position at an edge."""
    rng = np.random.default_rng(1)
    qpos = env.model.qpos0 + 0.05 * rng.normal(size=(num, env.model.nq))
    for joint, edges in EDGES[name].items():
        near = rng.choice(edges, num) * (1 + 0.1 * rng.normal(size=num))
        # On it, too, where float32 has that number.
        exact = [edge for edge in edges if edge == float(np.float32(edge))]
        if exact:
            near = np.where(rng.random(num) < 0.1, rng.choice(exact, num), near)
        qpos[:, joint] = np.where(rng.random(num) < 0.5, near, qpos[:, joint])
    # Hopper's observation hides what is faster than this.
    qvel = np.clip(20 * rng.normal(size=(num, env.model.nv)), -99, 99)
    return np.float32(qpos), np.float32(qvel)


def standing(env):
    """The task on a physics in which no time passes."""
    still = copy.copy(env)
    still._physics = types.SimpleNamespace(step=lambda state, ctrl: state)
    return still


def their_ends(plain, monkeypatch, qpos, qvel):
    """What Gymnasium says of such states, and where MuJoCo has the sites."""
    mujoco.mj_resetData(plain.model, plain.data)
    data, ctrl = plain.data, np.zeros(plain.model.nu, np.float32)

    def stand(*_):
        mujoco.mj_kinematics(plain.model, data)

    monkeypatch.setattr(plain, "do_simulation", stand)
    found = []
    for data.qpos[:], data.qvel[:] in zip(qpos, qvel, strict=True):
        found.append((plain.step(ctrl)[2], data.site_xpos.copy()))
    return map(np.array, zip(*found, strict=True))


@jax.jit
def spread(state, num):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(num), *x.shape)), state)


@pytest.mark.parametrize("name", TASKS)
def test_termination_agrees_with_done_and_with_gymnasium(name, monkeypatch):
    env, plain = cases.ours(name), cases.theirs(name)
    qpos, qvel = at_the_edges(env, name, 10_000)
    wanted, sites = their_ends(plain, monkeypatch, qpos, qvel)
    states = spread(env.reset(jax.random.key(0)), qpos)
    physics = states.pipeline_state.replace(qpos=qpos, qvel=qvel)
    if name == "inverted_double_pendulum":
        physics.derived["site_xpos"] = np.float32(sites)
    actions = cases.uniform(env, len(qpos), 1)
    states = states.replace(pipeline_state=physics)
    after = cases.lane_of(cases.played(states, actions, env=standing(env)), np.s_[:, 0])
    ends = jax.jit(jax.vmap(env.termination))(states.obs, actions[:, 0], after.obs)
    np.testing.assert_array_equal(after.done, wanted)
    np.testing.assert_array_equal(ends, wanted)
    assert name == "halfcheetah" or 0.1 < wanted.mean() < 0.9


@pytest.mark.parametrize("name", TASKS)
def test_termination_agrees_with_done_along_rollouts(name):
    env = cases.ours(name)
    starts = jax.jit(jax.vmap(env.reset))(cases.keys(10))
    actions = cases.uniform(env, 10, 100)
    after = cases.played(starts, actions, env=env)
    obs = jnp.concatenate([starts.obs[:, None], after.obs[:, :-1]], axis=1)
    ends = jax.jit(jax.vmap(jax.vmap(env.termination)))(obs, actions, after.obs)
    np.testing.assert_array_equal(ends, after.done)


@pytest.mark.parametrize(("name", "observation"), OBSERVATIONS)
def test_termination_takes_nan_for_an_end(name, observation):
    env = cases.ours(name, observation)
    size = env.observation_size
    obs = jax.jit(env.reset)(jax.random.key(0)).obs
    broken, action = obs + jnp.diag(jnp.full(size, jnp.nan)), jnp.zeros(env.action_size)
    broken = jnp.where(jnp.eye(size, dtype=bool), jnp.nan, obs)
    ends = jax.jit(env.termination)
    assert not ends(obs, action, obs)
    assert jax.vmap(ends, (None, None, 0))(obs, action, broken).all()
    assert jax.vmap(ends, (0, None, None))(broken, action, obs).all()
    assert ends(obs, action + jnp.nan, obs)


def test_hoppers_termination_does_not_see_what_its_observation_cuts():
    env = cases.ours("hopper")
    state = env.reset(jax.random.key(0))
    physics = state.pipeline_state.replace(qvel=jnp.full(6, 20.0).at[5].set(101.0))
    after = standing(env).step(state.replace(pipeline_state=physics), jnp.zeros(3))
    assert after.done
    assert not env.termination(state.obs, jnp.zeros(3), after.obs)
    assert after.obs.max() == 10


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "hopper", "physics": "warp"}, "'warp'; accepted: auto, c, mjx, mjx_w"),
        ({"env": "ant", "observation": "ful"}, "'ful'; accepted: truncated, full"),
        ({"env": "humanoid", "observation": "x"}, "'x'; accepted: truncated, full"),
        ({"env": "hopper", "observation": "full"}, "observation='full' raised TypeErr"),
        ({"env": "pendulum", "physics": "mjx"}, "physics='mjx' raised TypeError"),
    ],
)
def test_a_form_that_a_task_lacks_is_refused_in_one_line(options, message):
    refuses(message, **options)


def refuses(message, **options):
    with pytest.raises(envs.EnvError, match=message) as caught:
        envs.make(**options)
    text = str(caught.value)
    assert "\n" not in text
    assert ";" in text


@pytest.mark.parametrize(
    ("physics", "module", "remedy"),
    [
        ("c", "mujoco", r'mujoco>=3.17.*pip install "vagram_jax\[mujoco\]"'),
        ("c", "mujoco.batch", r'mujoco>=3.17.*pip install "vagram_jax\[mujoco\]"'),
        ("c", "gymnasium", r'gymnasium>=1.0.*pip install "vagram_jax\[mujoco\]"'),
        ("mjx", "mujoco.mjx", r'pip install "vagram_jax\[mujoco\]"'),
        ("mjx_warp", "warp", r'pip install "vagram_jax\[warp\]"'),
    ],
)
def test_a_missing_library_is_one_line(physics, module, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    if "." in module:
        package, _, name = module.partition(".")
        monkeypatch.delattr(sys.modules[package], name, raising=False)
    refuses(f"ModuleNotFoundError: .*{remedy}", env="hopper", physics=physics)
