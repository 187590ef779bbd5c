"""C MuJoCo as pure functions: steps depend only on their arguments, failures are NaN.

`test_tasks` checks that a step computes what Gymnasium computes.
"""

from __future__ import annotations

import concurrent.futures
import functools
import threading
import types

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import mujoco_cases as cases
import numpy as np
import pytest

from vagram_jax import envs, user_code
from vagram_jax.envs import episodes
from vagram_jax.envs.mujoco import physics, physics_c

NUM = 8
STATE, WARNING = mujoco.mjtState, mujoco.mjtWarning
FATAL = {
    WARNING.mjWARN_BADQPOS,
    WARNING.mjWARN_BADQVEL,
    WARNING.mjWARN_BADQACC,
    WARNING.mjWARN_BADCTRL,
}
COMPONENTS = [
    STATE.mjSTATE_QPOS,
    STATE.mjSTATE_QVEL,
    STATE.mjSTATE_QFRC_APPLIED,
    STATE.mjSTATE_CTRL,
]
# Batches of Ant are persistent, and those of Hopper are not.
BOTH = ["hopper", "ant"]

BOXES = """
<mujoco>
  <size memory="{memory}"/>
  <worldbody>
    <geom type="plane" size="9 9 1"/>
    <body pos="0 0 1">
      <joint name="fall" type="slide" axis="0 0 1"/>
      <geom type="box" size="0.1 0.1 0.1"/>
    </body>
    <body pos="5 0 1">
      <joint type="slide" axis="0 0 1"/>
      <geom type="box" size="0.1 0.1 0.1"/>
    </body>
  </worldbody>
  <actuator><motor joint="fall"/></actuator>
</mujoco>
"""
BOXES_SIMULATION = physics.Simulation(
    "boxes", 4, lambda model, data: data.qpos[..., :1]
)

c_env = functools.partial(cases.our_env, physics="c")


def fresh(env):
    """Returns the same physics without the memory of earlier calls."""
    return physics_c.CPhysics(env.model, env._task.simulation)


@functools.cache
def midway(name):
    """Returns NUM states in the middle of episodes, some touching the ground."""
    env = c_env(name)
    starts = cases.reset(cases.keys(NUM), env=env)
    after = cases.rollout(starts, cases.random_actions(env, NUM, 40), env=env)
    return cases.lane_of(cases.to_numpy(after), np.s_[:, -1])


@functools.cache
def controls(env, num=NUM):
    return cases.random_actions(env, num, seed=1)


@functools.cache
def single_step(physics):
    return jax.jit(physics.step)


@functools.cache
def batched_step(physics):
    return jax.jit(jax.vmap(physics.step))


def one_by_one(physics, states, ctrl):
    """Steps one state after the other in single calls."""
    lanes = cases.to_numpy((states, ctrl))
    after = [single_step(physics)(*cases.lane_of(lanes, i)) for i in range(len(ctrl))]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *after)


def broken(env, states, lanes, value=np.nan):
    """Sets a velocity of some lanes to a value for which MuJoCo reports a failure."""
    first = cases.location(env, STATE.mjSTATE_QVEL).start
    return cases.with_row(states, lanes, first, value)


@pytest.mark.parametrize("name", BOTH)
def test_a_step_does_not_depend_on_earlier_calls(name):
    env, states = c_env(name), midway(name)
    expected = one_by_one(fresh(env), states.pipeline_state, controls(env))
    step, reset = single_step(env._physics), jax.jit(env._physics.reset)
    failed = cases.lane_of(broken(env, states, 0).pipeline_state, 0)
    lanes = cases.to_numpy((states.pipeline_state, controls(env)))
    for lane in reversed(range(NUM)):
        state, ctrl = cases.lane_of(lanes, lane)
        step(failed, ctrl)
        reset(np.ones(env.model.nq), np.ones(env.model.nv))
        cases.assert_same_bits(step(state, ctrl), cases.lane_of(expected, lane))


@pytest.mark.parametrize(
    ("name", "shape"), [("hopper", (1,)), ("hopper", (2, 1, 3)), ("ant", (2, 3))]
)
def test_a_step_is_the_same_alone_and_vmapped_compiled_or_not(name, shape):
    env, num = c_env(name), int(np.prod(shape))
    states = cases.lane_of(midway(name).pipeline_state, np.s_[:num])
    expected = one_by_one(env._physics, states, controls(env)[:num])
    lanes, step = (states, controls(env)[:num]), env._physics.step
    for _ in shape:
        step = jax.vmap(step)
    nested = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), lanes)
    for function in (step, jax.jit(step)):
        after = jax.tree.map(
            lambda leaf: leaf.reshape(num, *leaf.shape[len(shape) :]), function(*nested)
        )
        cases.assert_same_bits(after, expected)


def test_steps_are_the_same_in_a_scan():
    env, ctrl = c_env("hopper"), cases.random_actions(c_env("hopper"), 10, 3)
    state = cases.lane_of(midway("hopper").pipeline_state, np.s_[:3])

    def one_step(state, ctrl):
        after = jax.vmap(env._physics.step)(state, ctrl)
        return after, after

    _, states = jax.jit(lambda *start: jax.lax.scan(one_step, *start))(state, ctrl)
    for t, each in enumerate(ctrl):
        state = one_by_one(env._physics, state, each)
        cases.assert_same_bits(cases.lane_of(states, t), state)


@pytest.mark.parametrize(("name", "lanes"), [("hopper", (NUM,)), ("ant", (2, 4))])
def test_one_call_steps_all_lanes_on_any_number_of_threads(name, lanes, monkeypatch):
    env, calls, original = c_env(name), [], mujoco.batch.Batch.step

    def step(batch, **options):
        calls.append((batch.nsim, batch.nthread, options))
        original(batch, **options)

    # One state and several controls.
    state = cases.lane_of(midway(name).pipeline_state, 3)
    repeated = jax.tree.map(lambda leaf: np.stack([leaf] * NUM), state)
    expected = one_by_one(env._physics, repeated, controls(env))
    monkeypatch.setattr(mujoco.batch.Batch, "step", step)
    for threads in (1, 2, 5, 40):
        monkeypatch.setattr(physics_c, "_threads", lambda threads=threads: threads)
        simulator = physics_c.CPhysics(env.model, env._task.simulation)
        vmapped = functools.reduce(
            lambda f, _: jax.vmap(f, (None, 0)), lanes, simulator.step
        )
        after = vmapped(state, controls(env).reshape(*lanes, -1))
        after = jax.tree.map(
            lambda leaf: leaf.reshape(NUM, *leaf.shape[len(lanes) :]), after
        )
        cases.assert_same_bits(after, expected)
    options = {"nstep": env._task.simulation.frame_skip}
    assert calls == [(NUM, threads, options) for threads in (1, 2, 5, NUM)]


def test_warm_starts_are_part_of_a_state():
    env, states = c_env("hopper"), midway("hopper")
    warm_start = cases.location(env, STATE.mjSTATE_WARMSTART)
    cold = cases.with_row(states, np.s_[:], warm_start, 0.0)
    step = batched_step(env._physics)
    after = (step(x.pipeline_state, controls(env)).hidden for x in (states, cold))
    differ = np.not_equal(*after).any(axis=1)
    # Lanes with ground contact, where the solver stops at another iterate.
    assert 0 < differ.sum() < NUM


def test_derivatives_through_a_step_are_refused():
    env, state = c_env("hopper"), cases.lane_of(midway("hopper"), 0)

    def reward(action):
        return env.step(state, action).reward

    for derivative in (jax.grad(reward), jax.jacfwd(reward)):
        with pytest.raises(ValueError, match="FFI call to `vagram_jax_host`"):
            derivative(jnp.zeros(env.action_size))


def mujoco_step(env, row, ctrl=None):
    """Takes a control step with MuJoCo's Python API; returns its data and warnings."""
    data = mujoco.MjData(env.model)
    mujoco.mj_setState(env.model, data, row, cases.ROW)
    if ctrl is None:
        mujoco.mj_forward(env.model, data)
        return data, set()
    data.ctrl[:] = ctrl
    # Otherwise warnings are written to standard error and to a file.
    mujoco.set_mju_user_warning(lambda message: None)
    for _ in range(env._task.simulation.frame_skip):
        mujoco.mj_step(env.model, data)
    mujoco.set_mju_user_warning(None)
    mujoco.mj_rnePostConstraint(env.model, data)
    return data, {kind for kind in FATAL if data.warning[kind].number}


def row_of(env, data):
    row = np.empty(mujoco.mj_stateSize(env.model, cases.ROW))
    mujoco.mj_getState(env.model, data, row, cases.ROW)
    return row


def assert_equals_data(env, state, data):
    """A state has MuJoCo's numbers, each rounded once to float32."""
    np.testing.assert_array_equal(state.qpos, np.float32(data.qpos))
    np.testing.assert_array_equal(state.qvel, np.float32(data.qvel))
    assert set(state.derived) == set(env._task.simulation.derived)
    for name, field in state.derived.items():
        np.testing.assert_array_equal(field, np.float32(getattr(data, name)))


def physics_rows(env, state):
    return cases.rows(env, types.SimpleNamespace(pipeline_state=state))


@pytest.mark.parametrize(
    ("name", "observation"), [("humanoid", "full"), ("inverted_double_pendulum", "")]
)
def test_resets_and_steps_return_mujocos_doubles_rounded_once(name, observation):
    env, rng = c_env(name, observation), np.random.default_rng(0)
    sizes = (env.model.nq, env.model.nv)
    noise = [np.float32(0.1 * rng.normal(size=(3, size))) for size in sizes]
    starts = cases.to_numpy(jax.jit(jax.vmap(env._physics.reset))(*noise))
    rows = physics_rows(env, starts)
    for lane, row in enumerate(rows):
        qpos = cases.part(env, row, STATE.mjSTATE_QPOS)
        np.testing.assert_array_equal(qpos, env.model.qpos0 + noise[0][lane])
        data, _ = mujoco_step(env, row)
        data.cfrc_ext[:] = 0.0  # as in Gymnasium after a reset
        assert_equals_data(env, cases.lane_of(starts, lane), data)
    assert not np.any(starts.velocity)
    assert not np.any(starts.diverged)
    state = starts
    for _ in range(15):
        state = batched_step(env._physics)(state, controls(env, 3))
    after = cases.to_numpy(batched_step(env._physics)(state, controls(env, 3)))
    for lane, row in enumerate(physics_rows(env, state)):
        data, _ = mujoco_step(env, row, controls(env, 3)[lane])
        assert_equals_data(env, cases.lane_of(after, lane), data)


def test_a_velocity_is_a_difference_of_doubles():
    env, states = c_env("hopper"), midway("hopper")
    x = cases.location(env, STATE.mjSTATE_QPOS).start
    point = mujoco.mj_stateSize(env.model, cases.ROW)  # its index, behind the row
    far = cases.with_row(states, np.s_[:], [x, point], 1e6)
    after = batched_step(env._physics)(far.pipeline_state, controls(env))
    speed = (physics_rows(env, after)[:, x] - 1e6) / (4 * env.model.opt.timestep)
    np.testing.assert_array_equal(after.velocity[:, 0], np.float32(speed))


def test_states_of_another_model_have_another_shape():
    """So that a checkpoint of another model or MuJoCo release is refused."""
    spec, shapes = mujoco.MjSpec.from_string(BOXES.format(memory="1M")), []
    for spec.nuserdata in (0, 3):
        boxes = physics_c.CPhysics(spec.compile(), BOXES_SIMULATION)
        state = jax.eval_shape(boxes.reset, jnp.zeros(2), jnp.zeros(2))
        shapes.append(state.hidden.shape[0])
    assert shapes[1] == shapes[0] + 2 * 3


@pytest.mark.parametrize("name", BOTH)
def test_simultaneous_callers_use_separate_memory(name, monkeypatch):
    env, states, callers = c_env(name), midway(name).pipeline_state, 3
    step = batched_step(env._physics)
    parts = [np.s_[2 * i : 2 * i + 2] for i in range(callers)]
    lanes = [cases.lane_of((states, controls(env)), part) for part in parts]
    expected = [cases.to_numpy(step(*each)) for each in lanes]
    barrier, original = threading.Barrier(callers, timeout=60), mujoco.batch.Batch.step

    def together(batch, **options):
        barrier.wait()  # All have written their rows, and none has read them.
        original(batch, **options)
        barrier.wait()

    monkeypatch.setattr(mujoco.batch.Batch, "step", together)
    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        for _ in range(5):
            after = list(pool.map(lambda each: cases.to_numpy(step(*each)), lanes))
            cases.assert_same_bits(after, expected)


@pytest.mark.parametrize("name", ["hopper", "humanoid"])
def test_a_simulation_diverges_if_mujoco_warns(name):
    env, num, rng = c_env(name), 100, np.random.default_rng(0)
    sizes = (env.model.nq, env.model.nv)
    noise = [np.float32(0.005 * rng.normal(size=(num, size))) for size in sizes]
    state = jax.jit(jax.vmap(env._physics.reset))(*noise)
    high = env.model.actuator_ctrlrange[0, 1].astype(np.float32)
    ctrl = np.array(high * cases.random_actions(env, num))
    columns = [cases.location(env, kind) for kind in COMPONENTS]
    lanes = np.arange(num)
    index = [rng.integers(columns[i % 4].start, columns[i % 4].stop) for i in lanes]
    value = rng.choice([-1, 1], num) * 10 ** rng.uniform(0, 15, num)
    value = np.where(rng.random(num) < 0.2, rng.choice([np.nan, np.inf], num), value)
    is_ctrl = lanes % 4 == 3  # The step overwrites the controls in the row.
    ctrl[is_ctrl & ~np.isfinite(value), 0] = np.nan
    hidden = np.array(state.hidden).view(np.float64)
    hidden[lanes, index] = np.where(is_ctrl, 0.0, value)
    state = state.replace(hidden=hidden.view(np.uint32))
    after = cases.to_numpy(batched_step(env._physics)(state, ctrl))
    rows, after_rows, seen = physics_rows(env, state), physics_rows(env, after), set()
    for lane, row in enumerate(rows):
        data, warnings = mujoco_step(env, row, ctrl[lane])
        assert after.diverged[lane] == bool(warnings)
        if not warnings:
            assert_equals_data(env, cases.lane_of(after, lane), data)
            np.testing.assert_array_equal(after_rows[lane], row_of(env, data))
        seen |= warnings
    assert seen == FATAL
    assert 0 < after.diverged.sum() < num


def assert_same_lanes(tree, expected, lanes, expected_lanes=None):
    expected_lanes = lanes if expected_lanes is None else expected_lanes
    cases.assert_same_bits(
        cases.lane_of(cases.to_numpy(tree), lanes),
        cases.lane_of(cases.to_numpy(expected), expected_lanes),
    )


def test_a_diverged_step_is_dropped_and_reset_and_leaves_other_lanes_unchanged():
    env, lost = c_env("hopper"), 1
    reset = jax.jit(jax.vmap(functools.partial(episodes.reset, env=env)))
    step = functools.partial(episodes.step, env=env, episode_length=99)
    step, keys = jax.jit(jax.vmap(step)), cases.keys(3, seed=5)
    start, actions = reset(cases.keys(3)), controls(env, 3)
    expected = step(keys, start, actions)
    start = start.replace(env_state=broken(env, start.env_state, lost))
    result = step(keys, start, actions)
    assert_same_lanes(result, expected, [0, 2])
    episode, data, valid = result
    np.testing.assert_array_equal(valid, [1, 0, 1])
    np.testing.assert_array_equal(data.truncated, [0, 1, 0])
    assert not data.terminated.any()
    assert np.isnan(data.next_obs[lost]).all()
    assert_same_lanes(episode, reset(keys), lost)
    assert not episode.env_state.pipeline_state.diverged.any()


@pytest.mark.parametrize("name", BOTH)
def test_divergence_persists_and_leaves_no_trace(name, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo would write warnings to a file there.
    env, states, ctrl = c_env(name), midway(name), controls(c_env(name))
    step = batched_step(env._physics)
    expected = step(states.pipeline_state, ctrl)
    for value in (np.nan, np.inf, 1e300):
        for lanes in ([3], [3, 4], [4], list(range(NUM))):
            state = broken(env, states, lanes, value).pipeline_state
            for _ in range(3):
                state = step(state, ctrl)
                assert np.flatnonzero(state.diverged).tolist() == lanes
                assert np.isnan(state.qpos[np.array(lanes)]).all()
            cases.assert_same_bits(step(states.pipeline_state, ctrl), expected)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", BOTH)
def test_a_diverged_state_is_nan_everywhere_and_truncated(name):
    env, states = c_env(name), broken(c_env(name), midway(name), [2, 7])
    actions = controls(env).at[4, 1].set(jnp.nan)  # A NaN action diverges, too.
    lost = [2, 4, 7]
    after = cases.to_numpy(jax.jit(jax.vmap(env.step))(states, actions))
    numbers = (after.obs, after.pipeline_state.replace(hidden=None))
    for leaf in jax.tree.leaves(numbers):
        is_marked = leaf if leaf.dtype == bool else np.isnan(leaf)
        is_marked = is_marked.reshape(NUM, -1)
        assert is_marked[lost].all()
        assert not np.delete(is_marked, lost, axis=0).any()
    assert np.flatnonzero(np.isnan(after.reward)).tolist() == lost
    assert np.flatnonzero(after.info["truncation"]).tolist() == lost


def model_with_little_memory(speed):
    """Returns a model with too little memory for its contacts at such a speed."""
    for size in range(1000, 5000, 100):
        model = mujoco.MjModel.from_xml_string(BOXES.format(memory=size))
        data = mujoco.MjData(model)
        data.qvel[:] = speed
        try:
            mujoco.mj_step(model, data, 4)
        except mujoco.FatalError:
            return model
    raise AssertionError("no memory size was too small")


def test_a_fatal_error_of_mujoco_counts_as_divergence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the file with MuJoCo's warnings
    speed = np.float32([[0, 0], [-475, -475], [-1, 2]])
    boxes = physics_c.CPhysics(model_with_little_memory(speed[1]), BOXES_SIMULATION)
    states = jax.vmap(boxes.reset)(np.zeros((3, 2), np.float32), speed)
    step, ctrl = jax.jit(jax.vmap(boxes.step)), jnp.zeros((3, 1))
    calm = cases.lane_of(states, np.array([0, 2, 2]))
    expected = step(calm, ctrl)
    for _ in range(2):
        after = step(states, ctrl)
        assert after.diverged.tolist() == [False, True, False]
        assert np.isnan(after.qpos[1]).all()
        assert_same_lanes(after, expected, [0, 2], [0, 1])
        cases.assert_same_bits(step(calm, ctrl), expected)


def test_an_exception_in_a_callback_names_the_line(monkeypatch):
    def fail(batch, **options):
        raise ZeroDivisionError("of a task of the user's")

    env = envs.make("inverted_pendulum", physics="c", episode_length=5)
    state, step = env.reset(jax.random.key(0)), jax.jit(env.step)
    monkeypatch.setattr(mujoco.batch.Batch, "step", fail)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        jax.block_until_ready(step(state, jnp.zeros(1)))
    line = fail.__code__.co_firstlineno + 1
    assert user_code.raised_at(caught.value).endswith(f"test_physics_c.py:{line}")
    expected = "ZeroDivisionError: of a task of the user's"
    assert user_code.reason(caught.value) == expected
