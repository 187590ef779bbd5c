"""Environments that run on the host, called by two devices at the same time."""

from __future__ import annotations

import adapter_cases
import pytest

pytest.importorskip("gymnasium")

CODE = """
import threading
import jax, mujoco.batch, numpy as np
from jax.sharding import PartitionSpec
import mujoco_cases, toy_gymnasium
from vagram_jax import envs
from vagram_jax.envs.mujoco import physics_c

mesh = jax.sharding.Mesh(np.array(jax.devices()), "lanes")
lanes = PartitionSpec("lanes")

def compare(env):
    states = mujoco_cases.reset(mujoco_cases.keys(4), env=env)
    actions = mujoco_cases.random_actions(env, 4, 15)
    expected = mujoco_cases.rollout(states, actions, env=env)
    jax.block_until_ready(expected)  # No call is left when a test replaces functions.
    rollout = lambda *inputs: mujoco_cases.rollout(*inputs, env=env)
    sharded = jax.jit(jax.shard_map(
        rollout, mesh=mesh, in_specs=(lanes, lanes), out_specs=lanes, check_vma=False))
    return sharded, states, actions, expected

sharded, *inputs, expected = compare(envs.make("gymnasium:ToySlow-v0"))
mujoco_cases.assert_same_bits(sharded(*inputs), expected)
assert toy_gymnasium.Walk.most_inside == 1

sharded, *inputs, expected = compare(envs.make("ant", physics="c"))
barrier, calls = threading.Barrier(2, timeout=60), set()
original = mujoco.batch.Batch.step

def step(batch, **options):
    calls.add((batch.nsim, batch.nthread))
    barrier.wait()  # Both devices are in their callback.
    original(batch, **options)

mujoco.batch.Batch.step = step
mujoco_cases.assert_same_bits(sharded(*inputs), expected)
assert calls == {(2, min(2, physics_c._threads()))}, calls
print("same on", len(jax.devices()))
"""


def test_two_devices_at_the_same_time_compute_what_one_does():
    done = adapter_cases.run_python(CODE, JAX_NUM_CPU_DEVICES="2", JAX_PLATFORMS="cpu")
    assert done.stdout == "same on 2\n", done.stderr[-3000:]
