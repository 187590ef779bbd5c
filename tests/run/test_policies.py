"""The policy of a run acts as the state that training ended with."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles_sac
import policy_cases
import pytest
import session_cases
from session_cases import programs_once, whole

import vagram_jax
from vagram_jax import envs
from vagram_jax.config import ConfigError
from vagram_jax.envs import episodes
from vagram_jax.run import policies, states
from vagram_jax.storage import files
from vagram_jax.storage.checkpoint import CheckpointError
from vagram_jax.storage.files import ResultsError

__all__ = ["programs_once", "whole"]

OBS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
SEEDS = (3, 4)


@pytest.fixture
def saved(tmp_path):
    """A run that was saved at step 11."""
    folder = policy_cases.create(tmp_path)
    policy_cases.save(folder, policy_cases.drawn(11), 11)
    return folder


def change(folder, **keys):
    """Changes settings in the record of a run."""
    record = files.read_json(folder / "config.json")
    record["config"] |= keys
    (folder / "config.json").write_text(json.dumps(record))


def test_a_policy_acts_as_the_state_that_training_ended_with(whole):
    obs = OBS[:, :1]
    last = session_cases.last_states(whole)
    for seed in range(session_cases.SEEDS):
        policy = vagram_jax.load_policy(session_cases.folder_of(whole), seed=seed)
        result = (policy.seed, policy.env_steps, policy.diverged_at)
        assert result == (seed, session_cases.LAST, None)
        layer = ".agent.actor['params']['mlp']['Dense_0']"
        weights = [
            np.float64(last[f"{layer}['{part}']"][seed]) for part in ("kernel", "bias")
        ]
        for action, one in zip(policy.act(obs), obs, strict=True):
            mean, _ = oracles_sac.policy([tuple(weights)], one)
            np.testing.assert_allclose(action, np.tanh(mean), atol=1e-6)  # float32


def test_each_seed_has_its_own_policy_and_none_means_the_first(saved):
    first, other = (policies.load_policy(saved, seed).act(OBS) for seed in SEEDS)
    assert np.abs(first - other).max() > 0.01
    default = policies.load_policy(str(saved))
    assert default.seed == 3
    np.testing.assert_array_equal(default.act(OBS), first)


def test_act_is_the_same_for_one_state_jitted_and_vmapped(saved):
    policy = policies.load_policy(saved)
    expected = policy.act(OBS)
    assert expected.shape == (5, 1)
    for result in (
        jnp.stack([policy.act(obs) for obs in OBS]),
        jax.jit(policy.act)(OBS),
        jax.vmap(policy.act)(OBS),
        policy.act(OBS[None])[0],
        policy.act(OBS.tolist()),
    ):
        # One product of matrices or five have their sums in another order.
        np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (5,), (3, 1), (3, 0)])
def test_act_refuses_another_number_of_dimensions(saved, shape):
    policy = policies.load_policy(saved)
    with pytest.raises(ValueError, match=r"act: obs has shape .*; \(\.\.\., 3\)"):
        policy.act(jnp.zeros(shape))


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_act_multiplies_with_the_precision_of_the_run(saved, precision):
    change(saved, matmul_precision=precision)
    policy = policies.load_policy(saved)
    program = str(jax.make_jaxpr(policy.act)(OBS))
    assert re.findall(r"Precision\.(\w+)", program) == [precision.upper()] * 2


def test_a_policy_has_the_environment_of_the_run(saved):
    change(saved, action_repeat=2)
    env, pendulum = policies.load_policy(saved).env, envs.make("pendulum")
    assert episodes.length(env) == 12
    start, expected = (each.reset(jax.random.key(1)) for each in (env, pendulum))
    result = env.step(start, jnp.ones(1))
    for _ in range(2):
        expected = pendulum.step(expected, jnp.ones(1))
    np.testing.assert_allclose(result.obs, expected.obs, atol=1e-6)  # scan or no scan


def test_the_policy_of_a_diverged_seed_is_the_last_one_before(tmp_path):
    folder, arrays = policy_cases.create(tmp_path), policy_cases.drawn(14)
    # A frozen seed keeps its state, in a checkpoint with the steps of the others.
    arrays[".env_steps"][1], arrays[".diverged_at"][1] = 8, 11
    policy_cases.save(folder, arrays, 14)
    healthy, diverged = (policies.load_policy(folder, seed) for seed in SEEDS)
    assert (healthy.env_steps, healthy.diverged_at) == (14, None)
    assert (diverged.env_steps, diverged.diverged_at) == (8, 11)


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_loaded(saved):
    expected = policies.load_policy(saved).act(OBS)
    policy_cases.save(saved, policy_cases.drawn(14, seed=1), 14)
    assert np.abs(policies.load_policy(saved).act(OBS) - expected).max() > 0.01
    arrays = saved / "checkpoints" / "000000014" / "seeds-3-4" / "arrays.npz"
    data = bytearray(arrays.read_bytes())
    data[len(data) // 2] ^= 1
    arrays.write_bytes(data)
    lines = []
    result = policies.load_policy(saved, report=lines.append).act(OBS)
    np.testing.assert_array_equal(result, expected)
    assert len(lines) == 1
    assert str(arrays) in lines[0]


def refusal(folder, *args, **options):
    """The class and the message of the error of a load that is refused."""
    with pytest.raises((ResultsError, ConfigError)) as caught:
        policies.load_policy(folder, *args, report=lambda _: None, **options)
    assert "\n" not in str(caught.value)
    return type(caught.value), str(caught.value)


def test_a_folder_that_is_no_run_is_refused(tmp_path, saved):
    for path, hint in (
        (tmp_path / "nowhere", "check the path"),
        (tmp_path, "check the path"),
        (saved / "config.json", "check the path"),
        (tmp_path / "study", "it is a study with sac"),
    ):
        error, message = refusal(path)
        assert error is ResultsError
        assert message.startswith(f"{path}: no run; ")
        assert message.endswith(hint)


@pytest.mark.parametrize("seed", [0, 2, 5, -1, "3"])
def test_a_seed_that_the_run_does_not_have_is_refused(saved, seed):
    error, message = refusal(saved, seed)
    assert error is ConfigError
    assert f"seed={seed!r}; the run has 3 to 4" in message


def test_a_run_without_an_undamaged_checkpoint_is_refused(tmp_path, saved):
    empty = policy_cases.create(tmp_path / "empty")
    (saved / "checkpoints" / "000000011" / "seeds-3-4" / "arrays.npz").write_bytes(b"")
    for folder in (empty, saved):
        error, message = refusal(folder, 4)
        assert error is CheckpointError
        assert "no undamaged checkpoint of seed 4; train the run first" in message


def test_settings_of_another_version_are_refused_and_name_it(saved):
    record = files.read_json(saved / "config.json")
    record["config"]["sac"]["width"] = 8
    record["versions"]["vagram_jax"] = "7.1"
    files.write_json(saved / "config.json", record)
    error, message = refusal(saved)
    assert error is ConfigError
    assert "sac.width" in message
    assert "made with vagram_jax 7.1; load it with that version" in message
    del record["versions"]
    files.write_json(saved / "config.json", record)
    assert "made with vagram_jax (unknown)" in refusal(saved)[1]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 3}'])
def test_a_record_that_holds_no_config_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    error, message = refusal(saved)
    assert error is ResultsError
    assert message.startswith(f"{saved / 'config.json'}: ")


def test_an_environment_that_cannot_be_found_is_refused(saved):
    change(saved, env="nowhere_at_all:Task")
    error, message = refusal(saved)
    assert error is ConfigError
    assert "env='nowhere_at_all:Task'" in message


def test_a_checkpoint_of_another_network_is_refused(saved):
    change(saved, sac={"hidden": [4]})
    error, message = refusal(saved)
    assert error is CheckpointError
    assert (
        "['Dense_0']['bias'] is ('float32', 2), this run has ('float32', 4)" in message
    )


def test_only_what_acts_and_two_counters_are_read_from_a_checkpoint(saved):
    env = envs.from_config(policy_cases.ENV)
    names = states.named(policies._shapes(env, policy_cases.CONFIG.sac))
    layer = ".agent.actor['params']['mlp']['Dense_0']"
    actor = {f"{layer}['{part}']" for part in ("kernel", "bias")}
    scales = {".agent.obs_mean", ".agent.obs_std"}
    assert set(names) == {*actor, *scales, ".env_steps", ".diverged_at"}
