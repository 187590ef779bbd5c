"""MuJoCo's tasks and Gymnasium's, for the tests: one state, the same actions."""

import functools

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from vagram_jax import envs
from vagram_jax.envs.mujoco import tasks

HIDDEN = {
    "ant": ["cfrc_ext"],
    "humanoid": ["cinert", "cvel", "qfrc_actuator", "cfrc_ext"],
}
"""What a truncated observation leaves out."""

ROW = mujoco.mjtState.mjSTATE_INTEGRATION


@functools.cache
def ours(name, observation="", physics="auto"):
    """One of our environments; compiled functions know it again."""
    return envs.make(name, observation=observation, physics=physics)


@functools.cache
def theirs(name, observation=""):
    """Gymnasium's environment that makes the same observations."""
    absent = HIDDEN[name] if observation == "truncated" else []
    options = {f"include_{field}_in_observation": False for field in absent}
    return gymnasium.make(tasks.GYMNASIUM[name], **options).unwrapped


def keys(num, seed=0):
    """So many random keys."""
    return jax.random.split(jax.random.key(seed), num)


def states_at(env, qpos, qvel):
    """States of ours `[n]` near `[n, nq]` and `[n, nv]`, which are rounded."""
    noise = np.float32(qpos - env.model.qpos0), np.float32(qvel)
    physics = jax.jit(jax.vmap(env._physics.reset))(*noise)
    first = jax.jit(jax.vmap(env.reset))(keys(len(qpos)))
    obs = jax.vmap(env._task.observe)(physics)
    return first.replace(pipeline_state=physics, obs=obs)


@functools.partial(jax.jit, static_argnames="env")
def played(states, actions, *, env):
    """States `[n]` under `[n, steps, action_dim]` to the states after, `[n, steps]`."""

    def one_step(state, action):
        after = env.step(state, action)
        return after, after

    return jax.vmap(lambda *lane: jax.lax.scan(one_step, *lane)[1])(states, actions)


def uniform(env, *shape, seed=0, reach=1.0):
    """Random actions."""
    draw = np.random.default_rng(seed).uniform(-reach, reach, (*shape, env.action_size))
    return jnp.asarray(draw, jnp.float32)


def rows(env, states):
    """The physics in doubles, `[..., nstate]`, of states of ours."""
    hidden = np.array(states.pipeline_state.hidden).view(np.float64)
    return hidden[..., : mujoco.mj_stateSize(env.model, ROW)]


def part(env, row, component):
    """One component of a row, such as `mjSTATE_CTRL`."""
    found = np.empty(mujoco.mj_stateSize(env.model, component))
    mujoco.mj_extractState(env.model, row, ROW, found, component)
    return found


def place(env, component):
    """Where in a row a component is: those of lower bits stand before it."""
    before = mujoco.mj_stateSize(env.model, ROW.value & (component.value - 1))
    return slice(before, before + mujoco.mj_stateSize(env.model, component))


def with_row(states, lane, index, value):
    """The states with some numbers of some lanes' rows replaced."""
    physics = states.pipeline_state
    hidden = np.array(physics.hidden).view(np.float64)
    hidden[lane, index] = value
    physics = physics.replace(hidden=jnp.asarray(hidden.view(np.uint32)))
    return states.replace(pipeline_state=physics)


def their_row(plain):
    """The physics of Gymnasium's environment, in our order."""
    row = np.empty(mujoco.mj_stateSize(plain.model, ROW))
    mujoco.mj_getState(plain.model, plain.data, row, ROW)
    return row


def put(plain, row):
    """Sets Gymnasium's environment to the positions and velocities of a row."""
    size = plain.model.nq
    mujoco.mj_resetData(plain.model, plain.data)
    plain.set_state(row[1 : 1 + size], row[1 + size : 1 + size + plain.model.nv])


def lane_of(tree, lane):
    """One of several."""
    return jax.tree.map(lambda leaf: leaf[lane], tree)


def bits(tree):
    """Everything on the host, floats as they are stored, so that NaN equals NaN."""
    return jax.tree.map(np.asarray, tree)


def assert_same_bits(found, wanted):
    """Every leaf has the same bits."""
    jax.tree.map(np.testing.assert_array_equal, bits(found), bits(wanted))
