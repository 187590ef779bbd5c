"""The checker of the protocol, and environments by name."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import probe_envs
import pytest

from vagram_jax import envs
from vagram_jax.config import ConfigError
from vagram_jax.envs import base, distractors, episodes


@pytest.mark.parametrize(
    "env",
    [
        probe_envs.Counter(),
        probe_envs.Flagged(),
        probe_envs.Foreign(),
        *(
            episodes.EpisodeWrapper(env(), action_repeat=3)
            for env in (probe_envs.Foreign, probe_envs.Counter)
        ),
        *(
            distractors.Distractors(probe_envs.Foreign(), 3, kind)
            for kind in distractors.KINDS
        ),
    ],
)
def test_check_env_accepts(env):
    base.check_env(env)


def test_check_env_does_not_require_pipeline_state():
    state = probe_envs.Foreign().reset(jax.random.key(0))
    assert not hasattr(state, "pipeline_state")


def _without(name):
    """Returns a counter whose reset returns a state without one field."""
    fields = {"obs": jnp.ones(3), "reward": 0.0, "done": 0.0, "metrics": {}, "info": {}}
    del fields[name]
    env = probe_envs.Counter()
    env.reset = lambda key: collections.namedtuple("Bare", fields)(**fields)
    return env


def _info(**info):
    return {"both": {"info": info}}


BROKEN = {
    "class": (probe_envs.Counter, "is a class"),
    "no reset": (object(), "reset can't be read"),
    "size zero": (probe_envs.Broken(action_size=0), "action_size=0"),
    "size float": (probe_envs.Broken(observation_size=3.0), "observation_size=3.0"),
    "size dict": (probe_envs.Broken(observation_size={"x": 3}), "observation_size={"),
    "size True": (probe_envs.Broken(action_size=True), "action_size=True"),
    "length": (probe_envs.Broken(episode_length=-1), "episode_length=-1"),
    "no method": (probe_envs.Broken(step=3), "step is not a function"),
    "gymnasium": (probe_envs.Gymnasium(), r"reset takes .*\(key\) is accepted"),
    "tuple": (probe_envs.TupleState(), "reset returned tuple without obs"),
    "no done": (_without("done"), "reset returned Bare without done"),
    "no metrics": (_without("metrics"), "reset returned Bare without metrics"),
    "obs dict": (probe_envs.Broken({"obs": {"x": jnp.ones(3)}}), "obs of type dict"),
    "pixels": (
        probe_envs.Broken({"obs": jnp.ones((8, 8, 3))}),
        r"obs float32\[8,8,3\]",
    ),
    "obs int": (probe_envs.Broken({"obs": jnp.ones(3, int)}), "cast it"),
    "declared": (probe_envs.Broken(observation_size=4), r"obs float32\[3\].*\[4\]"),
    "step obs": (
        probe_envs.Broken({}, {"obs": jnp.ones(2)}),
        r"step returned obs.*\[2\]",
    ),
    "reward [1]": (probe_envs.Broken({"reward": jnp.ones(1)}), r"reward float32\[1\]"),
    "reward int": (probe_envs.Broken({"reward": jnp.ones((), int)}), "reward int32"),
    "reward None": (probe_envs.Broken({"reward": None}), "reward of type NoneType"),
    "done [1]": (probe_envs.Broken({"done": jnp.ones(1)}), r"done float32\[1\]"),
    "done int": (probe_envs.Broken({"done": jnp.ones((), int)}), "done int32"),
    "metrics": (probe_envs.Broken({"metrics": ()}), "metrics of type tuple"),
    "truncation": (probe_envs.Broken(**_info(truncation=jnp.ones(2))), "truncation"),
    "tree": (
        probe_envs.Broken({}, {"metrics": {"x": 1.0}}),
        "metrics.*absent after reset",
    ),
    "dtype": (
        probe_envs.Broken({}, {"pipeline_state": jnp.ones(2, int)}),
        r"pipeline_state is float32\[2\] after reset and int32\[2\] after step",
    ),
    "structure": (probe_envs.Broken({}, {"pipeline_state": None}), "absent after step"),
    "classes": (
        probe_envs.Broken({"metrics": {"x": ()}}, {"metrics": {"x": []}}),
        "structure after step differs",
    ),
    "python if": (
        probe_envs.PythonIf(),
        r"step fails when JAX traces it \(probe_envs.py:",
    ),
    "host noise": (probe_envs.HostNoise(), "reset draws from a global generator"),
    "termination": (
        probe_envs.Broken(termination=lambda obs, action, next_obs: next_obs > 0),
        r"termination returned bool\[3\]",
    ),
    "termination arguments": (
        probe_envs.Broken(termination=lambda next_obs: next_obs[0] > 0),
        "termination takes",
    ),
    "termination float": (
        probe_envs.Broken(termination=lambda obs, action, next_obs: next_obs[0]),
        r"termination returned float32\[\]",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_env_refuses_in_one_line(name):
    env, message = BROKEN[name]
    with pytest.raises(base.EnvError, match=message) as caught:
        base.check_env(env)
    text = str(caught.value)
    assert "\n" not in text
    assert ";" in text  # It also says what is accepted or what to do.
    assert caught.value.status == 2


def test_all_finite_is_false_for_nan_and_infinities():
    good = jnp.ones((2, 3))
    assert base.all_finite(good, good)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not base.all_finite(good, good.at[1, 1].set(bad))


@pytest.mark.parametrize("name", envs.ENVS)
def test_make_returns_an_environment_by_name(name):
    env = envs.make(name)  # It is checked.
    assert env.episode_length > 0
    hash(env)  # Compiled functions close over it.


def test_make_applies_all_options():
    env = envs.make(
        "pendulum",
        observation="state",
        action_repeat=2,
        distractors=10,
        episode_length=7,
    )
    assert (env.observation_size, env.episode_length) == (12, 7)
    base.check_env(env)


def test_make_without_wrappers_returns_the_environment_itself():
    assert type(envs.make("pendulum", distractors=0)).__name__ == "Pendulum"
    assert envs.make("probe_envs:instance") is probe_envs.instance


@pytest.mark.parametrize("name", ["Counter", "factory", "instance"])
def test_make_imports_classes_functions_and_instances(name):
    env = envs.make(f"probe_envs:{name}", distractors=2)
    assert env.observation_size == 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"env": "pendulm"}, ConfigError, "known: .*cartpole_swingup.*mean pendulum"),
        ({"env": "nowhere.at_all:Env"}, ConfigError, "No module named 'nowhere'"),
        (
            {"env": "probe_envs:Countr"},
            ConfigError,
            "has no Countr; did you mean Counter",
        ),
        ({"env": "probe_envs:"}, ConfigError, "known: "),
        (
            {"env": "probe_envs:Costly"},
            base.EnvError,
            "FileNotFoundError: model.xml is",
        ),
        ({"env": "probe_envs:np"}, base.EnvError, "raised TypeError"),
        ({"env": "probe_envs:Gymnasium"}, base.EnvError, "reset takes"),
        ({"env": "pendulum", "distractor": 3}, ConfigError, "did you mean distractors"),
        ({"env": "pendulum", "distractors": -1}, ConfigError, "at least 0"),
        ({"env": "pendulum", "distractors": 1.5}, ConfigError, "whole number"),
        ({"env": "pendulum", "distractor_kind": "chaos"}, ConfigError, "mean chaotic"),
        ({"env": "pendulum", "distractor_scale": 0}, ConfigError, "above 0"),
        ({"env": "pendulum", "action_repeat": 0}, ConfigError, "at least 1"),
        ({"env": "pendulum", "observation": "pixels"}, base.EnvError, "vector, state"),
        (
            {"env": "cartpole_swingup", "observation": "state"},
            base.EnvError,
            "observation",
        ),
        (
            {"env": "probe_envs:instance", "observation": "x"},
            base.EnvError,
            "is an instance",
        ),
    ],
)
def test_make_refuses_in_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        envs.make(**options)
    assert "\n" not in str(caught.value)
