"""The MuJoCo tasks have the steps, terminations and starts of Gymnasium's v5."""

from __future__ import annotations

import copy
import functools
import sys
import types
from typing import Any, NamedTuple

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

FORMS = [
    *((name, "") for name in sorted(tasks.GYMNASIUM) if name not in cases.HIDDEN),
    *((name, form) for name in cases.HIDDEN for form in ("truncated", "full")),
]
TASKS = [(name, form) for name, form in FORMS if form != "full"]
NUM_STARTS, NUM_ANYWHERE, NUM_EPISODES, NUM_STEPS = 600, 100, 3, 60
STATE = mujoco.mjtState

# A few roundings of float32, in numbers and their sums. An angle of many turns has lost
# digits before its sine is computed.
CLOSE = {"rtol": 1e-5, "atol": 3e-6}


class Case(NamedTuple):
    """A task with one form of observation, here and in Gymnasium."""

    name: str
    env: Any
    plain: Any
    starts: Any  # [NUM_STARTS]


@functools.cache
def make_case(name, observation):
    env = cases.our_env(name, observation)
    starts = cases.to_numpy(cases.reset(cases.keys(NUM_STARTS), env=env))
    return Case(name, env, cases.gymnasium_env(name, observation), starts)


@pytest.fixture(params=FORMS, ids="-".join)
def case(request):
    """Each task and form of observation, made once."""
    return make_case(*request.param)


@pytest.fixture(params=TASKS, ids="-".join)
def task(request):
    """Each task in one form, made once."""
    return make_case(*request.param)


def anywhere(env, num):
    """Draws float32 positions and velocities near the start and far from it."""
    rng = np.random.default_rng(0)
    scale = 10 ** rng.uniform(-3, 0, (num, 1))
    qpos = env.model.qpos0 + scale * rng.normal(size=(num, env.model.nq))
    if not env.model.jnt_limited[0]:
        qpos[:, 0] += rng.uniform(-100, 100, num)
    qvel = 10 * scale * rng.normal(size=(num, env.model.nv))
    return np.float32(qpos), np.float32(qvel)


def gymnasium_step(plain, action):
    """Steps Gymnasium's environment with an action in [-1, 1]."""
    low, high = plain.model.actuator_ctrlrange.T.astype(action.dtype)
    ctrl = (high + low) / 2 + (high - low) / 2 * np.clip(action, -1, 1)
    obs, reward, terminated, _, info = plain.step(ctrl)
    terms = {name: x for name, x in info.items() if "reward" in name or "pena" in name}
    return cases.gymnasium_row(plain), obs, reward, terminated, terms


def gymnasium_rollout(plain, starts, actions):
    """Plays actions from rows; returns the first observations and all steps."""
    first_obs, steps = [], []
    for row, lane in zip(starts, np.asarray(actions), strict=True):
        cases.set_gymnasium(plain, row)
        np.testing.assert_array_equal(row, cases.gymnasium_row(plain))
        first_obs.append(plain._get_obs())
        steps += [gymnasium_step(plain, action) for action in lane]
    steps = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
    shape = actions.shape[:2]
    return np.stack(first_obs), jax.tree.map(
        lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), steps
    )


def assert_follows_gymnasium(case, starts, actions):
    """Compares everything that both show; returns our states."""
    env, starts = case.env, cases.to_numpy(starts)
    after = cases.to_numpy(cases.rollout(starts, actions, env=env))
    first_obs, (rows, obs, reward, terminated, terms) = gymnasium_rollout(
        case.plain, cases.rows(env, starts), actions
    )
    np.testing.assert_allclose(starts.obs, first_obs, **CLOSE)
    np.testing.assert_array_equal(cases.rows(env, after), rows)  # to the bit
    np.testing.assert_allclose(after.obs, obs, **CLOSE)
    assert set(after.metrics) == set(terms)
    for name, term in terms.items():
        np.testing.assert_allclose(after.metrics[name], term, **CLOSE)
    largest = np.max([np.abs(term) for term in terms.values()], axis=0)
    assert (np.abs(after.reward - reward) <= 1e-6 * largest + 1e-6).all()
    np.testing.assert_array_equal(after.done, terminated)
    # Otherwise Gymnasium would have been reset, and our state would be NaN.
    assert not after.pipeline_state.diverged.any()
    assert not after.info["truncation"].any()
    return after


def test_a_step_equals_gymnasiums_from_any_state(case):
    assert case.plain.observation_space.shape == (case.env.observation_size,)
    starts = cases.lane_of(case.starts, np.s_[:NUM_ANYWHERE])
    qpos, qvel = anywhere(case.env, NUM_ANYWHERE)
    starts = cases.states_at(starts, qpos, qvel, env=case.env)
    # Actions beyond the limits are clipped.
    actions = cases.random_actions(case.env, NUM_ANYWHERE, 1, limit=1.3)
    actions = actions.at[0].set(jnp.inf).at[1].set(-1e30)
    after = assert_follows_gymnasium(case, starts, actions)
    assert 0 < after.done.sum() < NUM_ANYWHERE or case.name == "halfcheetah"


def test_episodes_equal_gymnasiums_step_for_step(case):
    starts = cases.lane_of(case.starts, np.s_[:NUM_EPISODES])
    actions = cases.random_actions(case.env, NUM_EPISODES, NUM_STEPS)
    after = assert_follows_gymnasium(case, starts, actions)
    # `termination` computes from observations what `done` computes from the physics.
    obs = np.concatenate([starts.obs[:, None], after.obs[:, :-1]], axis=1)
    ends = jax.jit(jax.vmap(jax.vmap(case.env.termination)))(obs, actions, after.obs)
    np.testing.assert_array_equal(ends, after.done)


def test_termination_is_true_for_nan(case):
    size, action_size = case.env.observation_size, case.env.action_size
    good = np.concatenate(
        [case.starts.obs[0], np.zeros(action_size), case.starts.obs[0]]
    )
    inputs = np.tile(good, (len(good) + 1, 1))
    inputs[1:][np.eye(len(good), dtype=bool)] = np.nan
    obs, action, next_obs = np.split(inputs, [size, size + action_size], axis=1)
    ends = jax.jit(jax.vmap(case.env.termination))(obs, action, next_obs)
    assert not ends[0]
    assert ends[1:].all()


def test_starts_and_constants_are_those_of_gymnasium(case):
    spec = gymnasium.spec(tasks.GYMNASIUM[case.name])
    assert case.env.episode_length == spec.max_episode_steps == 1000
    assert case.env.dt == case.plain.dt
    start = case.starts
    numbers = (start.reward, start.done, start.info["truncation"], start.metrics)
    assert not any(leaf.any() for leaf in jax.tree.leaves(numbers))
    row = cases.rows(case.env, start)[0]
    for component in (STATE.mjSTATE_TIME, STATE.mjSTATE_CTRL):
        assert not cases.part(case.env, row, component).any()


def test_steps_equal_gymnasiums_in_double_precision(x64):
    env, plain = envs.make("hopper"), cases.gymnasium_env("hopper")
    start = jax.jit(env.reset)(jax.random.key(0))
    start = jax.tree.map(lambda leaf: leaf[None], start)
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 20, env.action_size))
    after = cases.rollout(start, actions, env=env)
    assert after.obs.dtype == after.reward.dtype == jnp.float64
    _, (rows, obs, reward, _, _) = gymnasium_rollout(
        plain, cases.rows(env, start), actions
    )
    np.testing.assert_array_equal(after.obs, obs)
    np.testing.assert_allclose(after.reward, reward, rtol=1e-13)
    np.testing.assert_array_equal(cases.rows(env, after), rows)


def test_starts_have_gymnasiums_distribution(task):
    env, plain, ours = task.env, task.plain, cases.rows(task.env, task.starts)
    plain.reset(seed=0)
    theirs = []
    for _ in range(NUM_STARTS):
        plain.reset()
        theirs.append(cases.gymnasium_row(plain))
    theirs, noises = np.array(theirs), []
    for component, mean in (
        (STATE.mjSTATE_QPOS, env.model.qpos0),
        (STATE.mjSTATE_QVEL, 0),
    ):
        columns = cases.location(env, component)
        ours_noise, theirs_noise = ours[:, columns] - mean, theirs[:, columns] - mean
        assert np.abs(ours_noise).max() <= 1.1 * np.abs(theirs_noise).max()
        test = stats.ks_2samp(ours_noise.ravel(), theirs_noise.ravel())
        assert test.pvalue > 1e-3
        assert len(np.unique(ours_noise)) > 0.98 * ours_noise.size
        noises.append(ours_noise)
    # The dimensions are independent.
    correlation = np.corrcoef(np.concatenate(noises, axis=1).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 5 / np.sqrt(
        NUM_STARTS
    )


EDGES = {
    "ant": {2: [0.2, 1.0]},
    "halfcheetah": {},
    "hopper": {1: [0.7], 2: [-0.2, 0.2], 3: [-100.0, 100.0]},
    "humanoid": {2: [1.0, 2.0]},
    "inverted_double_pendulum": {1: [-1.0, 1.0], 2: [-1.0, 1.0]},
    "inverted_pendulum": {1: [-0.2, 0.2]},
    "walker2d": {1: [0.8, 2.0], 2: [-1.0, 1.0]},
}
"""Values of positions, by index, at or near which an episode ends."""


def at_the_edges(env, name, num):
    """Draws float32 positions and velocities; half of the positions are at an edge."""
    rng = np.random.default_rng(1)
    qpos = env.model.qpos0 + 0.05 * rng.normal(size=(num, env.model.nq))
    for joint, edges in EDGES[name].items():
        near = rng.choice(edges, num) * (1 + 0.1 * rng.normal(size=num))
        # Some are exactly on the edge, if it is a float32.
        exact = [edge for edge in edges if edge == float(np.float32(edge))]
        if exact:
            near = np.where(rng.random(num) < 0.1, rng.choice(exact, num), near)
        qpos[:, joint] = np.where(rng.random(num) < 0.5, near, qpos[:, joint])
    # Hopper's observation hides faster velocities.
    qvel = np.clip(20 * rng.normal(size=(num, env.model.nv)), -99, 99)
    return np.float32(qpos), np.float32(qvel)


def without_time(env):
    """Returns the task on a physics in which no time passes."""
    still = copy.copy(env)
    still._physics = types.SimpleNamespace(step=lambda state, ctrl: state)
    return still


def gymnasium_terminations(plain, monkeypatch, qpos, qvel):
    """Returns whether Gymnasium ends in such states, and MuJoCo's site positions."""
    mujoco.mj_resetData(plain.model, plain.data)
    data, ctrl = plain.data, np.zeros(plain.model.nu, np.float32)
    monkeypatch.setattr(
        plain, "do_simulation", lambda *_: mujoco.mj_kinematics(plain.model, data)
    )
    results = []
    for data.qpos[:], data.qvel[:] in zip(qpos, qvel, strict=True):
        results.append((plain.step(ctrl)[2], data.site_xpos.copy()))
    return map(np.array, zip(*results, strict=True))


def test_termination_and_done_agree_with_gymnasium_at_the_edges(task, monkeypatch):
    name, env, num = task.name, task.env, 2000
    qpos, qvel = at_the_edges(env, name, num)
    expected, sites = gymnasium_terminations(task.plain, monkeypatch, qpos, qvel)
    start = cases.lane_of(task.starts, 0)
    actions = cases.random_actions(env, num)

    @jax.jit
    @jax.vmap
    def ends(qpos, qvel, site, action):
        physics = start.pipeline_state.replace(qpos=qpos, qvel=qvel)
        if name == "inverted_double_pendulum":
            physics = physics.replace(derived=physics.derived | {"site_xpos": site})
        after = without_time(env).step(start.replace(pipeline_state=physics), action)
        return after.done, env.termination(start.obs, action, after.obs)

    done, terminated = ends(qpos, qvel, np.float32(sites), actions)
    np.testing.assert_array_equal(done, expected)
    np.testing.assert_array_equal(terminated, expected)
    assert name == "halfcheetah" or 0.1 < expected.mean() < 0.9


def test_hoppers_termination_does_not_see_velocities_that_its_observation_clips():
    hopper = make_case("hopper", "")
    env, state = hopper.env, cases.lane_of(hopper.starts, 0)
    physics = state.pipeline_state.replace(qvel=jnp.full(6, 20.0).at[5].set(101.0))
    step = jax.jit(without_time(env).step)
    after = step(state.replace(pipeline_state=physics), np.zeros(3))
    assert after.done
    assert not env.termination(state.obs, jnp.zeros(3), after.obs)
    assert after.obs.max() == 10


def assert_refused(message, **options):
    with pytest.raises(envs.EnvError, match=message) as caught:
        envs.make(**options)
    text = str(caught.value)
    assert "\n" not in text
    assert ";" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "hopper", "physics": "warp"}, "'warp'; accepted: auto, c, mjx, mjx_w"),
        ({"env": "ant", "observation": "ful"}, "'ful'; accepted: truncated, full"),
        ({"env": "humanoid", "observation": "x"}, "'x'; accepted: truncated, full"),
        (
            {"env": "hopper", "observation": "full"},
            "observation='full', which it doesn't",
        ),
        (
            {"env": "pendulum", "physics": "mjx"},
            "physics='mjx', which it doesn't",
        ),
    ],
)
def test_an_option_that_a_task_lacks_is_refused_in_one_line(options, message):
    assert_refused(message, **options)


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
def test_a_missing_library_is_reported_in_one_line(
    physics, module, remedy, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    if "." in module:
        package, _, name = module.partition(".")
        monkeypatch.delattr(sys.modules[package], name, raising=False)
    assert_refused(f"ModuleNotFoundError: .*{remedy}", env="hopper", physics=physics)
