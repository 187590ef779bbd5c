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


Broken = probe_envs.Broken

BROKEN = {
    "class": (probe_envs.Counter, "is a class"),
    "no reset": (object(), "reset can't be read"),
    "size zero": (Broken(action_size=0), "action_size=0"),
    "size dict": (Broken(observation_size={"x": 3}), "observation_size={"),
    "size True": (Broken(action_size=True), "action_size=True"),
    "length": (Broken(episode_length=-1), "episode_length=-1"),
    "no method": (Broken(step=3), "step is not a function"),
    "gymnasium": (probe_envs.Gymnasium(), r"reset takes .*\(key\) is accepted"),
    "tuple": (probe_envs.TupleState(), "reset returned tuple without obs"),
    "no done": (_without("done"), "reset returned Bare without done"),
    "no metrics": (_without("metrics"), "reset returned Bare without metrics"),
    "obs dict": (Broken({"obs": {"x": jnp.ones(3)}}), "obs of type dict"),
    "pixels": (Broken({"obs": jnp.ones((8, 8, 3))}), r"obs float32\[8,8,3\]"),
    "obs half": (
        Broken({"obs": jnp.ones(3, jnp.bfloat16)}),
        r"obs bfloat16\[3\]; a float32 vector \[3\].* cast it",
    ),
    "reward half": (
        Broken({"reward": jnp.ones((), jnp.float16)}),
        r"reward float16\[\]; .*cast with astype\(jnp.float32\)",
    ),
    "exit": (
        probe_envs.Exits(),
        r"step fails when JAX traces it: SystemExit: 0 \(.*probe_envs.py:\d+\)",
    ),
    "obs int": (Broken({"obs": jnp.ones(3, int)}), "cast it"),
    "declared": (Broken(observation_size=4), r"obs float32\[3\].*\[4\]"),
    "step obs": (Broken({}, {"obs": jnp.ones(2)}), r"step returned obs.*\[2\]"),
    "reward [1]": (Broken({"reward": jnp.ones(1)}), r"reward float32\[1\]"),
    "reward None": (Broken({"reward": None}), "reward of type NoneType"),
    "done int": (Broken({"done": jnp.ones((), int)}), "done int32"),
    "metrics": (Broken({"metrics": ()}), "metrics of type tuple"),
    "truncation": (Broken({"info": {"truncation": jnp.ones(2)}}), "truncation"),
    "tree": (Broken({}, {"metrics": {"x": 1.0}}), "metrics.*absent after reset"),
    "dtype": (
        Broken({}, {"pipeline_state": jnp.ones(2, int)}),
        r"pipeline_state is float32\[2\] after reset and int32\[2\] after step",
    ),
    "structure": (Broken({}, {"pipeline_state": None}), "absent after step"),
    "classes": (
        Broken({"metrics": {"x": ()}}, {"metrics": {"x": []}}),
        "structure after step differs",
    ),
    "python if": (
        probe_envs.PythonIf(),
        r"step fails when JAX traces it: .*Error: .* \(.*probe_envs.py:\d+\); a pure",
    ),
    "host noise": (probe_envs.HostNoise(), "reset draws from a global generator"),
    "termination": (
        Broken(termination=lambda obs, action, next_obs: next_obs > 0),
        r"termination returned bool\[3\]",
    ),
    "termination arguments": (
        Broken(termination=lambda next_obs: next_obs[0] > 0),
        "termination takes",
    ),
    "termination float": (
        Broken(termination=lambda obs, action, next_obs: next_obs[0]),
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
    assert caught.value.status == 3


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
    ("env", "options", "message"),
    [
        ("pendulm", {}, "known: .*cartpole_swingup.*mean pendulum"),
        ("nowhere.at_all:Env", {}, "No module named 'nowhere'"),
        ("probe_envs:Countr", {}, "has no Countr; did you mean Counter"),
        ("probe_envs:", {}, "known: "),
        ("pendulum", {"distractor": 3}, "did you mean distractors"),
        ("pendulum", {"distractors": -1}, "at least 0"),
        ("pendulum", {"distractor_kind": "chaos"}, "mean chaotic"),
        ("pendulum", {"distractor_scale": 0}, "above 0"),
        ("pendulum", {"action_repeat": 0}, "at least 1"),
        ("probe_envs:Costly", {}, "FileNotFoundError: model.xml is"),
        ("probe_envs:np", {}, "raised TypeError"),
        ("probe_envs:Gymnasium", {}, "reset takes"),
        ("pendulum", {"observation": "pixels"}, "vector, state"),
        ("cartpole_swingup", {"observation": "state"}, "observation"),
        ("probe_envs:instance", {"observation": "x"}, "is an instance"),
    ],
)
def test_make_refuses_in_one_line(env, options, message):
    with pytest.raises((ConfigError, base.EnvError), match=message) as caught:
        envs.make(env, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": 5}, "env=5; text"),
        ({"action_repeat": 0}, "action_repeat=0; accepted: at least 1"),
        ({"distractor_kind": "foo"}, "distractor_kind='foo'; known: chaotic"),
    ],
)
def test_a_config_that_was_built_directly_is_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        envs.from_config(envs.EnvConfig(**options))


@pytest.mark.parametrize("error", [ValueError("two\nlines"), SystemExit(0)])
def test_as_env_error_makes_one_line_of_any_exception(error):
    with (
        pytest.raises(base.BrokenEnvError, match=r"^env x: step raised .*; repair it$"),
        base.as_env_error("env x: step"),
    ):
        raise error
