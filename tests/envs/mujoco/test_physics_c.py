"""C MuJoCo below the tasks: a step is a function of its arguments, always.

And a simulation that breaks down says so, and takes nobody with it. That a step is what
Gymnasium computes is tested in `test_envs_tasks`.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import mujoco_cases as cases
import numpy as np
import pytest

from vagram_jax import envs
from vagram_jax.envs import base, episodes
from vagram_jax.envs.mujoco import physics, physics_c
from vagram_jax.run import devices
from vagram_jax.storage import checkpoint

HERE = Path(__file__).parents[2]
NUM = 16
STATE, WARNING = mujoco.mjtState, mujoco.mjtWarning
KINDS = {
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
# Its batches keep what follows a step's constraints, and Hopper's don't.
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
ONE_POINT = physics.Simulation("boxes", 4, lambda model, data: data.qpos[..., :1])

c = functools.partial(cases.ours, physics="c")


def again(env):
    """The same physics without anything that it computed before."""
    return physics_c.CPhysics(env.model, env._task.simulation)


@functools.cache
def midway(name):
    """States in the midst of episodes, `[NUM]`."""
    starts = jax.jit(jax.vmap(c(name).reset))(cases.keys(NUM))
    played = cases.played(starts, cases.uniform(c(name), NUM, 40), env=c(name))
    return cases.lane_of(played, np.s_[:, -1])


def controls(env, num=NUM):
    return cases.uniform(env, num, seed=1)


@functools.cache
def compiled(physics):
    """The program of a single step."""
    return jax.jit(physics.step)


def each_alone(physics, states, ctrl):
    """What single calls make of one state after the other."""
    step, lanes = compiled(physics), cases.bits((states, ctrl))
    found = [step(*cases.lane_of(lanes, i)) for i in range(len(ctrl))]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def broken(env, states, lane, value=np.nan):
    """The states with a velocity in some lanes that MuJoCo takes for a breakdown."""
    first = cases.place(env, STATE.mjSTATE_QVEL).start
    return cases.with_row(states, lane, first, value)


# A step is a function of its arguments


@pytest.mark.parametrize("name", BOTH)
def test_a_step_is_the_same_whatever_was_computed_before(name):
    env, states = c(name), midway(name)
    wanted = each_alone(again(env), states.pipeline_state, controls(env))
    step, reset = compiled(env._physics), jax.jit(env._physics.reset)
    lost = cases.lane_of(broken(env, states, 0).pipeline_state, 0)
    lanes = cases.bits((states.pipeline_state, controls(env)))
    for lane in reversed(range(NUM)):
        state, ctrl = cases.lane_of(lanes, lane)
        step(lost, ctrl)
        reset(np.ones(env.model.nq), np.ones(env.model.nv))
        cases.assert_same_bits(step(state, ctrl), cases.lane_of(wanted, lane))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("hopper", shape) for shape in [(), (1,), (3,), (NUM,), (2, 1, 3)]),
        *(("ant", shape) for shape in [(), (NUM,), (2, 3)]),
    ],
)
def test_a_step_is_the_same_alone_and_vmapped_compiled_or_not(name, shape):
    env, num = c(name), int(np.prod(shape))
    states = cases.lane_of(midway(name).pipeline_state, np.s_[:num])
    wanted = each_alone(env._physics, states, controls(env, num))
    lanes, step = (states, controls(env, num)), env._physics.step
    for _ in shape:
        step = jax.vmap(step)
    nested = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), lanes)
    for kind in (step, jax.jit(step)):
        found = jax.tree.map(
            lambda leaf: leaf.reshape(num, *leaf.shape[len(shape) :]), kind(*nested)
        )
        cases.assert_same_bits(found, wanted)


def test_a_state_takes_several_controls():
    env = c("hopper")
    state, ctrl = cases.lane_of(midway("hopper").pipeline_state, 3), controls(env)
    found = jax.jit(jax.vmap(env._physics.step, (None, 0)))(state, ctrl)
    same_state = jax.tree.map(lambda leaf: np.stack([leaf] * NUM), state)
    cases.assert_same_bits(found, each_alone(env._physics, same_state, ctrl))


def test_steps_are_the_same_in_a_loop_of_jax():
    env, ctrl = c("hopper"), cases.uniform(c("hopper"), 10, 3)
    state = cases.lane_of(midway("hopper").pipeline_state, np.s_[:3])

    def one_step(state, ctrl):
        after = jax.vmap(env._physics.step)(state, ctrl)
        return after, after

    _, found = jax.jit(lambda *start: jax.lax.scan(one_step, *start))(state, ctrl)
    for t, each in enumerate(ctrl):
        state = each_alone(env._physics, state, each)
        cases.assert_same_bits(cases.lane_of(found, t), state)


@pytest.mark.parametrize("name", BOTH)
def test_a_step_is_the_same_on_any_number_of_threads(name, monkeypatch):
    env, states = c(name), midway(name).pipeline_state
    wanted, seen = each_alone(env._physics, states, controls(env)), []
    original = mujoco.batch.Batch.step

    def step(batch, **options):
        seen.append(batch.nthread)
        original(batch, **options)

    monkeypatch.setattr(mujoco.batch.Batch, "step", step)
    for threads in (1, 2, 5, 40):
        monkeypatch.setattr(physics_c, "_threads", lambda threads=threads: threads)
        found = jax.vmap(env._physics.step)(states, controls(env))
        cases.assert_same_bits(found, wanted)
    assert seen == [1, 2, 5, NUM]


def test_warm_starts_are_part_of_a_state():
    env, states = c("hopper"), midway("hopper")
    warm = cases.place(env, STATE.mjSTATE_WARMSTART)
    cold = cases.with_row(states, np.s_[:], warm, 0.0)
    step = jax.vmap(env._physics.step)
    after = (step(x.pipeline_state, controls(env)).hidden for x in (states, cold))
    differ = np.not_equal(*after).any(axis=1)
    # Those that touch the ground, where a solver stops a little elsewhere.
    assert 0 < differ.sum() < NUM


@pytest.mark.parametrize("lanes", [(), (1,), (5,), (2, 3)])
def test_all_lanes_are_stepped_in_one_call(lanes, monkeypatch):
    env, num = c("hopper"), int(np.prod(lanes))
    sizes, original = [], mujoco.batch.Batch.step

    def step(batch, **options):
        sizes.append((batch.nsim, options))
        original(batch, **options)

    monkeypatch.setattr(mujoco.batch.Batch, "step", step)
    state = cases.lane_of(midway("hopper"), 0)
    lane = jnp.zeros((*lanes, env.action_size))
    kind = functools.reduce(lambda f, _: jax.vmap(f, (None, 0)), lanes, env.step)
    jax.block_until_ready(jax.jit(kind)(state, lane))
    assert sizes == [(num, {"nstep": 4})]


def test_differentiating_through_a_step_is_refused():
    env, state = c("hopper"), cases.lane_of(midway("hopper"), 0)

    def reward(action):
        return env.step(state, action).reward

    for derivative in (jax.grad(reward), jax.jit(jax.jacfwd(reward))):
        with pytest.raises(ValueError, match="Pure callbacks do not support JVP"):
            derivative(jnp.zeros(env.action_size))


# What a step hands out


def theirs(env, row, ctrl=None):
    """MuJoCo's own loop over a control step from a row: its data, and its warnings."""
    data = mujoco.MjData(env.model)
    mujoco.mj_setState(env.model, data, row, cases.ROW)
    if ctrl is None:
        mujoco.mj_forward(env.model, data)
        return data, set()
    data.ctrl[:] = ctrl
    # What it warns of would go to standard error and to a file.
    mujoco.set_mju_user_warning(lambda message: None)
    for _ in range(env._task.simulation.frame_skip):
        mujoco.mj_step(env.model, data)
    mujoco.set_mju_user_warning(None)
    mujoco.mj_rnePostConstraint(env.model, data)
    return data, {kind for kind in KINDS if data.warning[kind].number}


def row_of(env, data):
    row = np.empty(mujoco.mj_stateSize(env.model, cases.ROW))
    mujoco.mj_getState(env.model, data, row, cases.ROW)
    return row


def assert_is(env, state, data):
    """A state has MuJoCo's numbers, each rounded once."""
    np.testing.assert_array_equal(state.qpos, np.float32(data.qpos))
    np.testing.assert_array_equal(state.qvel, np.float32(data.qvel))
    assert set(state.derived) == set(env._task.simulation.derived)
    for name, field in state.derived.items():
        np.testing.assert_array_equal(field, np.float32(getattr(data, name)))


EVERY_FIELD = [("humanoid", "full"), ("inverted_double_pendulum", "")]


@pytest.mark.parametrize(("name", "observation"), EVERY_FIELD)
def test_numbers_are_mujocos_doubles_rounded_once(name, observation):
    env = c(name, observation)
    states = jax.jit(jax.vmap(env.reset))(cases.keys(3))
    played = cases.played(states, cases.uniform(env, 3, 20), env=env)
    before = cases.lane_of(played, np.s_[:, -1])
    # By physics that have computed nothing yet.
    after = jax.vmap(again(env).step)(before.pipeline_state, controls(env, 3))
    for lane, row in enumerate(cases.rows(env, before)):
        data, _ = theirs(env, row, controls(env)[lane])
        assert_is(env, cases.lane_of(cases.bits(after), lane), data)


@pytest.mark.parametrize(("name", "observation"), EVERY_FIELD)
def test_a_start_has_the_fields_of_its_positions_and_no_contact_forces(
    name, observation
):
    env = c(name, observation)
    rng = np.random.default_rng(0)
    sizes = (env.model.nq, env.model.nv)
    qpos, qvel = (np.float32(rng.normal(size=(3, size))) for size in sizes)
    found = jax.jit(jax.vmap(env._physics.reset))(qpos, qvel)
    rows = cases.rows(env, base_state(found))
    for lane, row in enumerate(rows):
        np.testing.assert_array_equal(
            cases.part(env, row, STATE.mjSTATE_QPOS), env.model.qpos0 + qpos[lane]
        )
        data, _ = theirs(env, row)
        data.cfrc_ext[:] = 0.0
        assert_is(env, cases.lane_of(cases.bits(found), lane), data)
    assert not np.any(found.velocity)
    assert not np.any(found.diverged)


def base_state(pipeline_state):
    """A state of which only the physics is looked at."""
    names = ("obs", "reward", "done", "metrics", "info")
    return base.State(pipeline_state=pipeline_state, **dict.fromkeys(names))


def test_a_velocity_is_the_way_in_doubles_per_second():
    env, states = c("hopper"), midway("hopper")
    x = cases.place(env, STATE.mjSTATE_QPOS).start
    far = cases.with_row(states, np.s_[:], x, 1e6)
    way = mujoco.mj_stateSize(env.model, cases.ROW)  # where the row has the point
    far = cases.with_row(far, np.s_[:], way, 1e6)
    after = jax.vmap(env._physics.step)(far.pipeline_state, controls(env))
    rows = cases.rows(env, base_state(after))
    speed = (rows[:, x] - 1e6) / (4 * env.model.opt.timestep)
    np.testing.assert_array_equal(after.velocity[:, 0], np.float32(speed))


# Saved, elsewhere, at the same time


def last_of(states, env):
    """States a number of steps later."""
    actions = cases.uniform(env, NUM, 30, seed=2)
    return cases.lane_of(cases.played(states, actions, env=env), np.s_[:, -1])


def unpacked(arrays, env, layout):
    """What a checkpoint holds, as states on their devices."""
    shapes = jax.eval_shape(jax.vmap(env.reset), cases.keys(NUM))
    return checkpoint.unpack(arrays, shapes, layout)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with a checkpoint, and how its states go on."""
    folder = tmp_path_factory.mktemp("run")
    arrays = checkpoint.pack(midway("ant"))
    checkpoint.save(checkpoint.Piece(folder, range(NUM), arrays), 40)
    return folder, checkpoint.pack(last_of(midway("ant"), c("ant")))


def test_a_saved_state_goes_on_to_the_same_bits(run):
    folder, wanted = run
    env = envs.make("ant", physics="c")
    arrays = checkpoint.load(folder, 40, range(NUM))
    states = unpacked(arrays, env, devices.Layout())
    cases.assert_same_bits(checkpoint.pack(last_of(states, env)), wanted)


def on_two_devices(folder):
    """Goes on from a checkpoint, half of the lanes on each device."""
    env, layout = c("ant"), devices.Layout()
    devices_meet, threads = threading.Barrier(2, timeout=60), set()
    original = mujoco.batch.Batch.step

    def step(batch, **options):
        threads.add((batch.nsim, batch.nthread))
        devices_meet.wait()
        original(batch, **options)

    mujoco.batch.Batch.step = step
    states = unpacked(checkpoint.load(folder, 40, range(NUM)), env, layout)
    actions = cases.uniform(env, NUM, 30, seed=2)

    def play(state, actions):
        one_step = jax.lax.scan(lambda *x: (env.step(*x), None), state, actions)
        return one_step[0]

    played = devices.over_lanes(play, layout, in_axes=(0, 0))(
        states, devices.put(np.asarray(actions), layout, NUM)
    )
    np.savez(folder / "played.npz", **checkpoint.pack(played))
    print(json.dumps({"devices": layout.mesh.size, "batches": sorted(threads)}))


def test_two_devices_at_the_same_time_compute_what_one_does(run):
    folder, wanted = run
    code = f"import test_envs_physics as t; t.on_two_devices(t.Path({str(folder)!r}))"
    settings = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Each has its own lanes and its part of the cores.
    threads = max(1, min(devices._cores() // 2, NUM // 2))
    told = {"devices": 2, "batches": [[NUM // 2, threads]]}
    assert json.loads(done.stdout.splitlines()[-1]) == told
    with np.load(folder / "played.npz") as arrays:
        cases.assert_same_bits(dict(arrays), wanted)


@pytest.mark.parametrize("name", BOTH)
def test_callers_at_the_same_time_do_not_meet_in_memory(name, monkeypatch):
    env, states, callers = c(name), midway(name).pipeline_state, 3
    step = jax.jit(jax.vmap(env._physics.step))
    parts = [np.s_[3 * i : 3 * i + 3] for i in range(callers)]
    lanes = [cases.lane_of((states, controls(env)), part) for part in parts]
    wanted = [cases.bits(step(*each)) for each in lanes]
    meet, original = threading.Barrier(callers, timeout=60), mujoco.batch.Batch.step

    def together(batch, **options):
        meet.wait()  # All have written their rows, and none has read them.
        original(batch, **options)
        meet.wait()

    monkeypatch.setattr(mujoco.batch.Batch, "step", together)
    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        for _ in range(5):
            found = list(pool.map(lambda each: cases.bits(step(*each)), lanes))
            cases.assert_same_bits(found, wanted)


def test_rows_of_another_length_are_refused():
    """As those of a MuJoCo that has more in them, or of another model file."""
    spec = mujoco.MjSpec.from_string(BOXES.format(memory="1M"))
    shapes, arrays = [], []
    for spec.nuserdata in (0, 3):
        longer = physics_c.CPhysics(spec.compile(), ONE_POINT)
        states = jax.vmap(longer.reset)(jnp.zeros((2, 2)), jnp.zeros((2, 2)))
        shapes.append(jax.eval_shape(lambda states=states: states))
        arrays.append(checkpoint.pack(states))
    checkpoint.unpack(arrays[0], shapes[0], devices.Layout())
    with pytest.raises(checkpoint.CheckpointError, match=r"\.hidden is .*; 1 arrays"):
        checkpoint.unpack(arrays[0], shapes[1], devices.Layout())


# A simulation that breaks down


@pytest.mark.parametrize("name", ["hopper", "humanoid"])
def test_diverged_is_what_mujoco_warns_of(name):
    env, num, rng = c(name), 200, np.random.default_rng(0)
    states = jax.jit(jax.vmap(env.reset))(cases.keys(num))
    actions = np.array(cases.uniform(env, num, 1))
    places = [cases.place(env, kind) for kind in COMPONENTS]
    lanes = np.arange(num)
    index = [rng.integers(places[i % 4].start, places[i % 4].stop) for i in lanes]
    value = rng.choice([-1, 1], num) * 10 ** rng.uniform(0, 15, num)
    value = np.where(rng.random(num) < 0.2, rng.choice([np.nan, np.inf], num), value)
    is_ctrl = lanes % 4 == 3  # and that comes with the step
    actions[is_ctrl & ~np.isfinite(value), 0, 0] = np.nan
    states = cases.with_row(states, lanes, index, np.where(is_ctrl, 0.0, value))
    after = cases.lane_of(cases.played(states, actions, env=env), np.s_[:, 0])
    high, seen = env.model.actuator_ctrlrange[0, 1].astype(np.float32), set()
    for lane, row in enumerate(cases.rows(env, states)):
        data, warnings = theirs(env, row, high * actions[lane, 0])
        assert after.pipeline_state.diverged[lane] == bool(warnings)
        if not warnings:
            assert_is(env, cases.lane_of(after, lane).pipeline_state, data)
            np.testing.assert_array_equal(
                cases.rows(env, after)[lane], row_of(env, data)
            )
        seen |= warnings
    assert seen == KINDS
    assert 0 < after.pipeline_state.diverged.sum() < num


@pytest.mark.parametrize("name", ["ant", "halfcheetah", "inverted_pendulum"])
def test_what_diverges_is_dropped_and_starts_anew_and_leaves_the_others(name):
    env, lost = c(name), 1
    reset = jax.jit(jax.vmap(functools.partial(episodes.reset, env=env)))
    step = functools.partial(episodes.step, env=env, episode_length=99)
    step, keys = jax.jit(jax.vmap(step)), cases.keys(3, seed=5)
    start, actions = reset(cases.keys(3)), cases.uniform(env, 3)
    wanted = step(keys, start, actions)
    start = start.replace(env_state=broken(env, start.env_state, lost))
    found = step(keys, start, actions)
    same(found, wanted, [0, 2])
    episode, data, valid = found
    np.testing.assert_array_equal(valid, [1, 0, 1])
    np.testing.assert_array_equal(data.truncated, [0, 1, 0])
    assert not data.terminated.any()
    assert np.isnan(data.next_obs[lost]).all()
    same(episode, reset(keys), lost)
    assert not episode.env_state.pipeline_state.diverged.any()


def same(found, wanted, lanes, others=None):
    """These lanes are those of `wanted`, or the others."""
    others = lanes if others is None else others
    cases.assert_same_bits(
        cases.lane_of(cases.bits(found), lanes),
        cases.lane_of(cases.bits(wanted), others),
    )


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_diverged_once_leaves_no_trace_in_later_calls(name, value):
    env, states = c(name), midway(name)
    step, ctrl = jax.jit(jax.vmap(env._physics.step)), controls(env)
    wanted = step(states.pipeline_state, ctrl)
    for lanes in ([3], [3, 4], [4], list(range(NUM))):
        lost = broken(env, states, lanes, value)
        for _ in range(2):
            found = step(lost.pipeline_state, ctrl)
            assert np.flatnonzero(found.diverged).tolist() == lanes
        cases.assert_same_bits(step(states.pipeline_state, ctrl), wanted)


@pytest.mark.parametrize("name", BOTH)
def test_what_diverged_stays_so(name):
    env, states = c(name), broken(c(name), midway(name), 5)
    step, state = jax.jit(jax.vmap(env._physics.step)), states.pipeline_state
    for _ in range(3):
        state = step(state, controls(env))
        assert np.flatnonzero(state.diverged).tolist() == [5]
        assert np.isnan(state.qpos[5]).all()


@pytest.mark.parametrize("name", BOTH)
def test_what_diverged_is_nan_everywhere_and_truncated(name):
    env, states = c(name), broken(c(name), midway(name), [2, 7])
    after = cases.bits(jax.vmap(env.step)(states, controls(env)))
    numbers = (after.obs, after.reward, after.pipeline_state.replace(hidden=None))
    for leaf in jax.tree.leaves(numbers):
        odd = leaf if leaf.dtype == bool else np.isnan(leaf)
        where = odd.reshape(NUM, -1)
        assert where[[2, 7]].all()
        assert not np.delete(where, [2, 7], axis=0).any()
    assert np.flatnonzero(after.info["truncation"]).tolist() == [2, 7]


def test_controls_that_are_no_numbers_diverge():
    env, states = c("hopper"), midway("hopper")
    actions = controls(env).at[2, 1].set(jnp.nan)
    after = jax.vmap(env.step)(states, actions)
    assert np.flatnonzero(after.info["truncation"]).tolist() == [2]


def test_a_divergence_is_not_printed(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes what it warns of to a file there
    env = c("hopper")
    step, states = jax.jit(jax.vmap(env.step)), midway("hopper")
    for value in (np.nan, 1e300):
        for lanes in ([0], np.s_[:], [0]):
            lost = broken(env, states, lanes, value)
            jax.block_until_ready(step(lost, controls(env)))
    jax.block_until_ready(step(states, controls(env) + jnp.nan))
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def forgetful(speed):
    """A model with too little memory for the contacts at such a speed."""
    for size in range(1000, 5000, 100):
        model = mujoco.MjModel.from_xml_string(BOXES.format(memory=size))
        data = mujoco.MjData(model)
        data.qvel[:] = speed
        try:
            mujoco.mj_step(model, data, 4)
        except mujoco.FatalError:
            return model
    raise AssertionError("there was memory, or there were fewer contacts")


def test_a_simulation_that_mujoco_gives_up_is_told_like_one_that_diverged(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # for the file with MuJoCo's warnings
    speed = np.float32([[0, 0], [-475, -475], [-1, 2]])
    falling = physics_c.CPhysics(forgetful(speed[1]), ONE_POINT)
    states = jax.vmap(falling.reset)(np.zeros((3, 2), np.float32), speed)
    step, ctrl = jax.jit(jax.vmap(falling.step)), jnp.zeros((3, 1))
    calm = cases.lane_of(states, np.array([0, 2, 2]))
    wanted = step(calm, ctrl)
    for _ in range(2):
        found = step(states, ctrl)
        assert found.diverged.tolist() == [False, True, False]
        assert np.isnan(found.qpos[1]).all()
        same(found, wanted, [0, 2], [0, 1])
        cases.assert_same_bits(step(calm, ctrl), wanted)
