"""Playground's environments get the right options and compute what Playground does."""

from __future__ import annotations

import sys
import types

import adapter_cases as cases
import jax
import numpy as np
import probe_envs
import pytest

from vagram_jax import envs


@pytest.fixture
def playground(monkeypatch):
    """A Playground without MuJoCo; returns the list of its calls of `load`."""
    loaded = []

    class Config(dict):
        episode_length = 250

    def load(name, config_overrides):
        print("downloading")
        loaded.append((name, config_overrides))
        return probe_envs.BraxStub(as_dict=True)

    module = types.ModuleType("mujoco_playground")
    module.registry = types.SimpleNamespace(
        ALL_ENVS=("Old", "New"),
        load=load,
        get_default_config=lambda name: Config({"impl": 0} if name == "New" else {}),
    )
    monkeypatch.setitem(sys.modules, "mujoco_playground", module)
    return loaded


@pytest.mark.parametrize(
    ("device", "physics", "impl"),
    [
        ("cpu", "auto", "jax"),
        ("NVIDIA H100", "auto", None),
        ("cpu", "warp", "warp"),
        ("NVIDIA H100", "jax", "jax"),
    ],
)
def test_make_overrides_the_implementation_if_there_is_a_choice(
    device, physics, impl, playground, monkeypatch, capsys
):
    kinds = [types.SimpleNamespace(device_kind=device)]
    monkeypatch.setattr(jax, "devices", lambda: kinds)
    env = envs.make("playground:New", physics=physics, observation="state")
    envs.make("playground:Old", observation="state")
    overrides = {"impl": impl} if impl else {}
    assert playground == [("New", overrides), ("Old", {})]
    assert (env.observation_size, env.action_size, env.episode_length) == (2, 2, 250)
    assert capsys.readouterr() == ("", "downloading\n" * 2)


def test_make_refuses_in_one_line(playground):
    for name, message, options in [
        ("new", "no such environment; near: New", {}),
        ("New", "physics='c'; accepted: auto, jax, warp", {"physics": "c"}),
        ("New", "observation=''; accepted: privileged, state", {}),
        ("Old", "Old has no choice of physics", {"physics": "warp"}),
    ]:
        cases.assert_refused(f"playground:{name}", message, **options)


def test_steps_equal_playground():
    registry = pytest.importorskip("mujoco_playground").registry
    env = envs.make("playground:CartpoleBalance")
    assert env.episode_length == 1000
    raw = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    _, (data, valid, states) = cases.rollout(
        jax.random.key(1), cases.start(env, 2), env=env, length=8, num_steps=20
    )
    assert valid.all()
    inner = states.pipeline_state
    after = jax.jit(jax.vmap(jax.vmap(raw.step)))(inner, data.action)
    np.testing.assert_allclose(data.next_obs, after.obs, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(data.reward, after.reward, rtol=1e-3, atol=1e-3)
    assert data.truncated.sum() == 2 * 2
