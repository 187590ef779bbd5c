"""MuJoCo tasks of this package and of Gymnasium, brought into the same states."""

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
"""The fields that a truncated observation leaves out."""

ROW = mujoco.mjtState.mjSTATE_INTEGRATION


@functools.cache
def our_env(name, observation="", physics="auto"):
    """Makes each environment once, so that compiled functions are reused."""
    return envs.make(name, observation=observation, physics=physics)


def gymnasium_env(name, observation=""):
    """Makes Gymnasium's environment with the same observation."""
    absent = HIDDEN[name] if observation == "truncated" else []
    options = {f"include_{field}_in_observation": False for field in absent}
    return gymnasium.make(tasks.GYMNASIUM[name], **options).unwrapped


def keys(num, seed=0):
    """Returns `num` random keys."""
    return jax.random.split(jax.random.key(seed), num)


@functools.partial(jax.jit, static_argnames="env")
def reset(keys, *, env):
    """Resets one environment per key."""
    return jax.vmap(env.reset)(keys)


@functools.partial(jax.jit, static_argnames="env")
def states_at(starts, qpos, qvel, *, env):
    """Moves starts `[n]` to positions `[n, nq]` and velocities `[n, nv]`."""
    noise = qpos - env.model.qpos0.astype(np.float32), qvel
    physics = jax.vmap(env._physics.reset)(*noise)
    obs = jax.vmap(env._task.observe)(physics)
    return starts.replace(pipeline_state=physics, obs=obs)


@functools.partial(jax.jit, static_argnames="env")
def rollout(states, actions, *, env):
    """States `[n]` and actions `[n, steps, action_dim]` to the states `[n, steps]`."""

    def one_step(state, action):
        after = env.step(state, action)
        return after, after

    return jax.vmap(lambda *lane: jax.lax.scan(one_step, *lane)[1])(states, actions)


def random_actions(env, *shape, seed=0, limit=1.0):
    """Draws uniform actions `[*shape, action_dim]`."""
    draw = np.random.default_rng(seed).uniform(-limit, limit, (*shape, env.action_size))
    return jnp.asarray(draw, jnp.float32)


def rows(env, states):
    """Returns the physics of states as doubles, `[..., nstate]`."""
    hidden = np.array(states.pipeline_state.hidden).view(np.float64)
    return hidden[..., : mujoco.mj_stateSize(env.model, ROW)]


def part(env, row, component):
    """Returns one component of a row, such as `mjSTATE_CTRL`."""
    values = np.empty(mujoco.mj_stateSize(env.model, component))
    mujoco.mj_extractState(env.model, row, ROW, values, component)
    return values


def location(env, component):
    """Returns the slice of a component in a row, which is ordered by their bits."""
    start = mujoco.mj_stateSize(env.model, ROW.value & (component.value - 1))
    return slice(start, start + mujoco.mj_stateSize(env.model, component))


def with_row(states, lane, index, value):
    """Replaces numbers in the rows of some lanes."""
    physics = states.pipeline_state
    hidden = np.array(physics.hidden).view(np.float64)
    hidden[lane, index] = value
    physics = physics.replace(hidden=jnp.asarray(hidden.view(np.uint32)))
    return states.replace(pipeline_state=physics)


def gymnasium_row(plain):
    """Returns the physics of Gymnasium's environment as a row."""
    row = np.empty(mujoco.mj_stateSize(plain.model, ROW))
    mujoco.mj_getState(plain.model, plain.data, row, ROW)
    return row


def set_gymnasium(plain, row):
    """Sets Gymnasium's environment to the positions and velocities of a row."""
    size = plain.model.nq
    mujoco.mj_resetData(plain.model, plain.data)
    plain.set_state(row[1 : 1 + size], row[1 + size : 1 + size + plain.model.nv])


def lane_of(tree, lane):
    """Indexes every leaf."""
    return jax.tree.map(lambda leaf: leaf[lane], tree)


def to_numpy(tree):
    """Moves every leaf to the host."""
    return jax.tree.map(np.asarray, tree)


def assert_same_bits(tree, expected):
    """Compares every leaf exactly; NaN equals NaN."""
    jax.tree.map(np.testing.assert_array_equal, to_numpy(tree), to_numpy(expected))
