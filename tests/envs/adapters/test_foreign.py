"""Environments of Brax, Playground and Gymnasium, against the same stepped alone."""

# ruff: noqa: D102  (the methods are the protocol's, described there)

from __future__ import annotations

import concurrent.futures
import functools
import gc
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax import envs
from vagram_jax.envs import base, episodes
from vagram_jax.envs.adapters import foreign, hosted

gymnasium = pytest.importorskip("gymnasium")
toys = pytest.importorskip("toy_gymnasium")

ROOT = Path(__file__).parents[3]


@functools.partial(jax.jit, static_argnames=("env", "length", "num_steps"))
def roll(key, first, *, env, length, num_steps):
    """`num_steps` of episodes side by side: the last states, and what each step saw."""

    def one_step(carry, key):
        def one_lane(key, state):
            key_act, key_step = jax.random.split(key)
            # Beyond the bounds, too: then the environment gets the bound.
            action = jax.random.uniform(key_act, (env.action_size,), minval=-1.2)
            after, transition, valid = episodes.step(
                key_step, state, action, env=env, episode_length=length
            )
            return after, (transition, valid, state.env_state)

        keys = jax.random.split(key, carry.steps.shape[0])
        return jax.vmap(one_lane)(keys, carry)

    return jax.lax.scan(one_step, first, jax.random.split(key, num_steps))


def start(env, lanes, seed=0):
    keys = jax.random.split(jax.random.key(seed), lanes)
    return jax.jit(jax.vmap(functools.partial(episodes.reset, env=env)))(keys)


def played(env, lanes, num_steps):
    run = functools.partial(roll, env=env, length=env.episode_length)
    return run(jax.random.key(1), start(env, lanes), num_steps=num_steps)[1]


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def scaled(action, space):
    """What Gymnasium's own wrappers make of an action in [-1, 1]."""
    action = np.clip(np.float64(action), -1, 1)
    low, high = np.float64(space.low), np.float64(space.high)
    return np.float32(low + (high - low) * (action + 1) / 2)


# Gymnasium


@pytest.mark.parametrize(
    ("name", "num_steps", "ends"),
    [
        ("Pendulum-v1", 210, "truncated"),
        ("MountainCarContinuous-v0", 40, None),
        ("InvertedPendulum-v5", 60, "terminated"),
        ("ToyLimit-v0", 60, "terminated"),
        ("ToyTruncated-v0", 30, "truncated"),
    ],
)
def test_gymnasium_is_what_gymnasium_computes(name, num_steps, ends):
    env = envs.make(f"gymnasium:{name}")
    data, valid, states = played(env, 3, num_steps)
    assert valid.all()
    ended = data.terminated | data.truncated
    plain = gymnasium.make(name, disable_env_checker=True)
    for lane in range(3):
        mine, past = lane_of(data, lane), lane_of(states.pipeline_state, lane)
        for t in range(num_steps):
            if past.steps[t] == 0:
                obs, _ = plain.reset(seed=int(past.seed[t]))
            np.testing.assert_array_equal(mine.obs[t], np.float32(obs))
            action = scaled(mine.action[t], plain.action_space)
            obs, reward, terminated, truncated, _ = plain.step(action)
            np.testing.assert_array_equal(mine.next_obs[t], np.float32(obs))
            assert mine.reward[t] == np.float32(reward)
            assert mine.terminated[t] == terminated
            assert mine.truncated[t] == (truncated and not terminated)
    assert not ends or getattr(data, ends).any()
    num_episodes = 3 + ended[:-1].sum()
    assert len(np.unique(states.pipeline_state.seed)) == num_episodes


def lane_of(tree, lane):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:, lane], tree)


@pytest.fixture
def x64_env(x64):
    return envs.make("gymnasium:InvertedPendulum-v5")


def test_gymnasium_keeps_all_digits_where_jax_does(x64_env):
    state = x64_env.reset(jax.random.key(0))
    plain = gymnasium.make("InvertedPendulum-v5")
    obs, _ = plain.reset(seed=int(state.pipeline_state.seed))
    np.testing.assert_array_equal(state.obs, obs)
    after = jax.jit(x64_env.step)(state, jnp.array([0.5]))
    np.testing.assert_array_equal(after.obs, plain.step(np.float32([1.5]))[0])


@functools.cache
def limited():
    return envs.make("gymnasium:ToyLimit-v0")


def test_another_process_goes_on_where_this_one_was():
    env = limited()
    run = functools.partial(roll, env=env, length=20, num_steps=15)
    middle, _ = run(jax.random.key(1), start(env, 3))
    saved = jax.device_get(middle)
    assert (saved.steps > 0).any()
    straight = run(jax.random.key(2), middle)
    new = envs.make("gymnasium:ToyLimit-v0")
    run = functools.partial(roll, env=new, length=20, num_steps=15)
    steps = toys.Walk.steps
    same(run(jax.random.key(2), saved), straight)
    assert toys.Walk.steps - steps == 3 * 15 + saved.steps.sum()  # each repeated once
    # The old one is elsewhere by now; the same call gives the same all the same.
    run = functools.partial(roll, env=env, length=20, num_steps=15)
    same(run(jax.random.key(2), middle), straight)


def test_states_that_branch_off_one():
    env, plain = limited(), gymnasium.make("ToyLong-v0", disable_env_checker=True)
    step = jax.jit(jax.vmap(env.step, in_axes=(None, 0)))
    root = env.reset(jax.random.key(0))
    one = jnp.array([[0.1], [-0.1], [0.1]])
    for _ in range(2):  # The second time, no environment stands at the root.
        leaves = step(root, one)
        for lane, action in enumerate(one):
            plain.reset(seed=int(root.pipeline_state.seed))
            obs = plain.step(scaled(action, plain.action_space))[0]
            np.testing.assert_array_equal(leaves.obs[lane], np.float32(obs))
    # Twins stand at one place, and each can go on from it.
    after, made = jax.vmap(env.step)(leaves, 2 * one), toys.Walk.made
    for _ in range(9):
        jax.vmap(env.step)(leaves, 2 * one)
    assert toys.Walk.made - made <= 3
    same(after.obs[0], after.obs[2])
    assert after.obs[0, 0] != after.obs[1, 0]


def test_lanes_beyond_the_first_capacity_are_repeated_only_at_first(monkeypatch):
    monkeypatch.setattr(hosted, "_FIRST_CAPACITY", 2)
    env = envs.make("gymnasium:ToyLong-v0")
    run = functools.partial(roll, env=env, length=1000, num_steps=12)
    made, before = toys.Walk.made, toys.Walk.steps
    middle, (few, _, _) = run(jax.random.key(1), start(env, 8))
    repeated = toys.Walk.steps - before - 8 * 12
    assert 0 < repeated < 8 * 3
    assert toys.Walk.made - made <= 8 + 2
    before = toys.Walk.steps
    _, (more, _, _) = run(jax.random.key(2), middle)
    assert toys.Walk.steps - before <= 8 * 12 + 24
    monkeypatch.undo()
    roomy = envs.make("gymnasium:ToyLong-v0")
    run = functools.partial(roll, env=roomy, length=1000, num_steps=12)
    middle, (few_again, _, _) = run(jax.random.key(1), start(roomy, 8))
    same((few, more), (few_again, run(jax.random.key(2), middle)[1][0]))


@pytest.mark.parametrize("length", [20, 3])
def test_many_episodes_leave_few_environments(length):
    env = limited()  # of its own end, and cut while it goes on
    gc.collect()
    before, made = len(toys.Walk.alive), toys.Walk.made
    run = functools.partial(roll, env=env, length=length, num_steps=150)
    _, (data, _, _) = run(jax.random.key(1), start(env, 3))
    assert (data.terminated | data.truncated).sum() > 50
    assert toys.Walk.made - made <= 17
    assert len(toys.Walk.alive) - before <= 17


def test_the_first_end_is_the_last_one():
    env = envs.make("gymnasium:ToyTruncated-v0")
    step, state = jax.jit(env.step), env.reset(jax.random.key(0))
    for count in range(1, 8):
        state = step(state, jnp.zeros(1))
        assert state.done == state.info["truncation"] == (count == 7)
    steps = toys.Walk.steps
    after = step(state, jnp.ones(1))
    same(after, state.replace(reward=jnp.zeros(())))
    assert state.reward != 0
    assert toys.Walk.steps == steps


def ends(env, num_steps):
    """`(done, truncation)` after each step."""
    state, found = env.reset(jax.random.key(0)), []
    for _ in range(num_steps):
        state = env.step(state, jnp.zeros(env.action_size))
        found.append((float(state.done), float(state.info["truncation"])))
    return found


def test_a_length_of_our_own_cuts_and_a_termination_goes_first():
    make = functools.partial(gymnasium.make, "ToyEndless-v0", disable_env_checker=True)
    env = hosted.Gymnasium(make, "endless", episode_length=3)
    assert ends(env, 3) == [(0, 0), (0, 0), (1, 1)]
    both = functools.partial(gymnasium.make, "ToyBadBoth-v0", disable_env_checker=True)
    assert ends(hosted.Gymnasium(both, "x"), 2) == [(0, 0), (1, 0)]
    assert ends(hosted.Gymnasium(both, "x", episode_length=2), 2) == [(0, 0), (1, 0)]


def test_numbers_that_are_not_finite_flow_through_and_end():
    for name, part in [("NanObs", "obs"), ("NanReward", "reward")]:
        env = envs.make(f"gymnasium:ToyBad{name}-v0")
        state = env.step(env.reset(jax.random.key(0)), jnp.zeros(1))
        assert base.all_finite(state.obs, state.reward)
        state = env.step(state, jnp.zeros(1))
        assert jnp.isnan(getattr(state, part)).all()
        assert state.done == 1
    env = limited()
    state, steps = env.reset(jax.random.key(0)), toys.Walk.steps
    for bad in (jnp.nan, jnp.inf):
        after = env.step(state, jnp.array([bad]))
        assert jnp.isnan(after.obs).all()
        assert jnp.isnan(after.reward)
        assert after.done == 1
    assert toys.Walk.steps == steps


def test_an_exception_in_a_step_names_the_environment():
    env = envs.make("gymnasium:ToyBadRaise-v0")
    state, step = env.reset(jax.random.key(0)), jax.jit(env.step)
    for _ in range(4):
        state = step(state, jnp.zeros(1))
    # JAX's dispatcher says which: a RuntimeError if the program ran in the background.
    with pytest.raises((RuntimeError, ValueError)) as caught:
        jax.block_until_ready(step(state, jnp.zeros(1)))
    assert (
        str(caught.value)
        .splitlines()[-1]
        .endswith(
            "EnvError: env gymnasium:ToyBadRaise-v0: step raised ZeroDivisionError: "
            "the leg; repair it"
        )
    )
    jax.block_until_ready(step(env.reset(jax.random.key(1)), jnp.zeros(1)))


def test_threads_share_the_environments():
    env = envs.make("gymnasium:ToySlow-v0")
    run = functools.partial(roll, env=env, length=20, num_steps=40)
    starts = [start(env, 3, seed) for seed in range(4)]
    keys = list(jax.random.split(jax.random.key(5), 4))
    alone = [
        jax.block_until_ready(run(*each)) for each in zip(keys, starts, strict=True)
    ]
    toys.Walk.most_inside = 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda *each: jax.device_get(run(*each)), keys, starts)
        )
    same(together, alone)
    assert toys.Walk.most_inside == 1


SHARDED = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
import toy_gymnasium, test_envs_foreign as tests
from vagram_jax import envs

env = envs.make("gymnasium:ToySlow-v0")
first, key = tests.start(env, 4), jax.random.key(1)
run = lambda key, first: tests.roll(key[0], first, env=env, length=20, num_steps=30)
keys = jax.random.split(key, 2)
mesh = jax.sharding.Mesh(np.array(jax.devices()), "seeds")
specs = {"in_specs": P("seeds"), "out_specs": (P("seeds"), P(None, "seeds"))}
ours = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(keys, first)
halves = [jax.tree.map(lambda x: x[part], first) for part in (slice(2), slice(2, 4))]
theirs = [run(keys[i:], half) for i, half in enumerate(halves)]
tests.same(jax.tree.map(lambda x: x[:2], ours[0]), theirs[0][0])
tests.same(jax.tree.map(lambda x: x[2:], ours[0]), theirs[1][0])
tests.same(jax.tree.map(lambda x: x[:, 2:], ours[1]), theirs[1][1])
assert toy_gymnasium.Walk.most_inside == 1
print("same on", len(jax.devices()))
"""


def python(code, **settings):
    """What a fresh interpreter prints, and what it complains of."""
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | places | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_devices_share_the_environments():
    count = "--xla_force_host_platform_device_count=2"
    done = python(SHARDED, XLA_FLAGS=count, JAX_PLATFORMS="cpu")
    assert done.stdout == "same on 2\n", done.stderr


def test_a_module_is_imported_to_register(tmp_path, monkeypatch):
    text = 'import toy_gymnasium as t\nt._register("Imported")\n'
    (tmp_path / "registering.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert envs.make("gymnasium:registering:Imported-v0").episode_length == 20


GYMNASIUM_ERRORS = {
    "Hoper-v5": "NameNotFound.*; near: Hopper-v5, Hopper-v",
    "hopper-v5": "near: Hopper-v5",
    "Hopper-v77": "VersionNotFound.*; near: Hopper-v5",
    "Nowhere/Hopper-v5": "NamespaceNotFound: Namespace Nowhere not found",
    "no_such_module:X-v0": "ModuleNotFoundError: No module named 'no_such_module'",
    "CartPole-v1": r"its action space is Discrete of shape \(\); .* continuous",
    "ToyDiscrete-v0": "its action space is Discrete",
    "ToyInteger-v0": "its actions are int32; floats",
    "ToyUnbounded-v0": "bounds of its action space are not finite",
    "ToyDict-v0": "its observation space is Dict of .*FlattenObservation",
    "ToyPixels-v0": r"observation space is Box of shape \(3, 3\); .*FlattenObservation",
    "ToyEndless-v0": "max_episode_steps=None; .*; register it with one",
    "ToyMoodyDrawsAnew-v0": "two episodes from one seed differ",
    "ToyMoodyBornDifferent-v0": "two episodes from one seed differ",
    "ToyMoodyWearsOut-v0": "two episodes from one seed differ",
    "ToyBadShape-v0": r"trial episode raised the observation has shape \(2,\); \(3,\)",
}


@pytest.mark.parametrize("name", GYMNASIUM_ERRORS)
def test_gymnasium_refuses_in_one_line(name):
    refuses(f"gymnasium:{name}", GYMNASIUM_ERRORS[name])


def refuses(name, message, **options):
    with pytest.raises(base.EnvError, match=message) as caught:
        envs.make(name, **options)
    text = str(caught.value)
    assert text.startswith(f"env {name}: ")
    assert "\n" not in text
    assert ";" in text


def test_gymnasium_has_no_options():
    refuses("gymnasium:Pendulum-v1", "observation='x'", observation="x")
    refuses("gymnasium:Pendulum-v1", "physics='mjx'", physics="mjx")


def test_gymnasium_needs_jax_on_a_cpu(monkeypatch):
    config = types.SimpleNamespace(jax_platforms="cuda")
    monkeypatch.setattr(hosted.jax, "config", config)
    with pytest.raises(base.EnvError, match="set JAX_PLATFORMS=cuda,cpu"):
        foreign.gymnasium_env("Pendulum-v1")


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("brax:hopper", "brax.envs", "pip install brax"),
        ("playground:HopperHop", "mujoco_playground", r'"vagram_jax\[playground\]"'),
        ("gymnasium:Hopper-v5", "gymnasium", r'"vagram_jax\[gymnasium\]"'),
    ],
)
def test_a_missing_library_is_one_line(name, module, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    refuses(name, f"ModuleNotFoundError.*{remedy}$")


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, vagram_jax.envs, vagram_jax.envs.adapters.foreign as f; print(sorted("
    code += "{'brax', 'gymnasium', 'mujoco', 'mujoco_playground'} & set(sys.modules)))"
    assert python(code).stdout == "[]\n"


# Brax and Playground


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["obs", "reward", "done", "metrics", "info"],
    meta_fields=[],
)
class StubState(types.SimpleNamespace):
    """As another package may have it."""


class Stub:
    """Like one of Brax: it takes raw keys, and writes into the state it is given."""

    action_size = 2

    def __init__(self, as_dict=False):
        self._as_dict = as_dict

    def _state(self, obs, key, count):
        return StubState(
            obs={"state": obs, "privileged": obs[:1]} if self._as_dict else obs,
            reward=obs.sum(),
            done=0.0,
            metrics={"count": count},
            info={"key": key},
        )

    def reset(self, key):
        return self._state(jax.random.normal(key, (2,)), key, 0)

    def step(self, state, action):
        obs = state.obs["state"] if self._as_dict else state.obs
        state.metrics["count"] += 1
        return self._state(obs + action, state.info["key"], state.metrics["count"])


@pytest.mark.parametrize("entry", ["", "state"])
def test_a_functional_environment_gets_raw_keys_and_a_copy(entry):
    env = foreign.Functional(
        Stub(bool(entry)), "stub", observation=entry, episode_length=7
    )
    base.check_env(env)
    assert (env.observation_size, env.action_size, env.episode_length) == (2, 2, 7)
    key = jax.random.key(3)
    state = env.reset(key)
    same(state.obs, jax.random.normal(jax.random.key_data(key), (2,)))
    after = env.step(state, jnp.ones(2))
    same(after.obs, state.obs + 1)
    assert after.reward == after.obs.sum()
    assert (state.metrics["count"], after.metrics["count"]) == (0, 1)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_an_observation_that_is_not_finite_ends_the_episode(bad):
    env = foreign.Functional(Stub(), "stub", episode_length=7)
    state = env.step(env.reset(jax.random.key(0)), jnp.array([0.0, 1.0]))
    assert state.done == 0
    assert env.step(state, jnp.array([0.0, bad])).done == 1


def test_one_entry_of_a_dict_is_the_observation():
    make = functools.partial(foreign.Functional, episode_length=7)
    with pytest.raises(base.EnvError, match="observation=''; accepted: privileged, st"):
        make(Stub(as_dict=True), "stub")
    with pytest.raises(base.EnvError, match="observation='stat'; accepted"):
        make(Stub(as_dict=True), "stub", observation="stat")
    with pytest.raises(base.EnvError, match="observation='state'; it has one"):
        make(Stub(), "stub", observation="state")


def test_brax_is_what_brax_computes():
    pytest.importorskip("brax")
    env = envs.make("brax:inverted_pendulum", physics="spring")
    from brax import envs as brax

    raw = brax.get_environment("inverted_pendulum", backend="spring")
    run = functools.partial(roll, env=env, length=12, num_steps=60)
    _, (data, valid, states) = run(jax.random.key(1), start(env, 3))
    assert valid.all()
    inner = states.pipeline_state
    after = jax.jit(jax.vmap(jax.vmap(raw.step)))(inner, data.action)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    near(data.obs, inner.obs)
    near(data.next_obs, after.obs)
    near(data.reward, after.reward)
    same(data.terminated, after.done > 0)
    assert data.terminated.any()
    assert data.truncated.any()
    # What follows an end is a start, and no two starts are the same.
    ended = data.terminated | data.truncated
    starts = states.obs[1:][ended[:-1]]
    assert len(np.unique(starts, axis=0)) == len(starts) > 3
    assert np.abs(starts - data.next_obs[:-1][ended[:-1]]).max(-1).min() > 1e-3


def test_brax_hopper_passes_the_checker():
    pytest.importorskip("brax")
    env = envs.make("brax:hopper", physics="positional")
    assert (env.observation_size, env.action_size) == (11, 3)
    assert env.episode_length == 1000
    assert env.termination is None


@pytest.mark.parametrize(
    ("name", "physics", "message"),
    [
        ("hoper", "auto", "no such environment; near: hopper"),
        ("Hopper", "auto", "near: hopper"),
        ("zzz", "auto", "known: ant, fast, halfcheetah, hopper, humanoid"),
        ("hopper", "c", "physics='c'; accepted: auto, generalized, spring, positional"),
        ("swimmer", "mjx", "physics='mjx' raised ValueError: Unsupported backend"),
    ],
)
def test_brax_refuses_in_one_line(name, physics, message):
    pytest.importorskip("brax")
    refuses(f"brax:{name}", message, physics=physics)


def test_brax_is_silent():
    pytest.importorskip("brax")
    code = "from vagram_jax.envs import make; make('brax:reacher', physics='spring')"
    done = python(code)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Warning" not in done.stderr


@pytest.fixture
def playground(monkeypatch):
    """A Playground without MuJoCo, which notes what it was asked for."""
    loaded = []

    class Config(dict):
        episode_length = 250

    def load(name, config_overrides):
        print("downloading")
        loaded.append((name, config_overrides))
        return Stub(as_dict=True)

    module = types.ModuleType("mujoco_playground")
    module.registry = types.SimpleNamespace(
        ALL_ENVS=("Old", "New"),
        load=load,
        get_default_config=lambda name: Config({"impl": 0} if name == "New" else {}),
    )
    monkeypatch.setitem(sys.modules, "mujoco_playground", module)
    return loaded


@pytest.mark.parametrize(
    ("device", "physics", "asked"),
    [
        ("cpu", "auto", "jax"),
        ("NVIDIA H100", "auto", None),
        ("cpu", "warp", "warp"),
        ("NVIDIA H100", "jax", "jax"),
    ],
)
def test_playground_gets_the_physics(
    device, physics, asked, playground, monkeypatch, capsys
):
    kinds = [types.SimpleNamespace(device_kind=device)]
    monkeypatch.setattr(jax, "devices", lambda: kinds)
    env = envs.make("playground:New", physics=physics, observation="state")
    envs.make("playground:Old", observation="state")
    overrides = {"impl": asked} if asked else {}
    assert playground == [("New", overrides), ("Old", {})]
    assert (env.observation_size, env.action_size, env.episode_length) == (2, 2, 250)
    assert capsys.readouterr() == ("", "downloading\n" * 2)


def test_playground_refuses_in_one_line(playground):
    refuses("playground:new", "no such environment; near: New")
    refuses("playground:New", "physics='c'; accepted: auto, jax, warp", physics="c")
    refuses("playground:New", "observation=''; accepted: privileged, state")
    refuses("playground:Old", "Old has no choice of physics", physics="warp")


def test_playground_is_what_playground_computes():
    pytest.importorskip("mujoco_playground")
    env = envs.make("playground:CartpoleBalance")
    assert env.episode_length == 1000
    from mujoco_playground import registry

    raw = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    run = functools.partial(roll, env=env, length=8, num_steps=20)
    _, (data, valid, states) = run(jax.random.key(1), start(env, 2))
    assert valid.all()
    inner = states.pipeline_state
    after = jax.jit(jax.vmap(jax.vmap(raw.step)))(inner, data.action)
    np.testing.assert_allclose(data.next_obs, after.obs, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(data.reward, after.reward, rtol=1e-3, atol=1e-3)
    assert data.truncated.sum() == 2 * 2
