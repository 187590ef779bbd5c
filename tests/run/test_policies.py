"""The policy of a run: what it does is what training ended with."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles_sac
import policy_cases
import pytest

import vagram_jax
from vagram_jax import envs, sac
from vagram_jax.config import ConfigError
from vagram_jax.envs import episodes
from vagram_jax.run import policies, runner
from vagram_jax.storage import checkpoint, files
from vagram_jax.storage.checkpoint import CheckpointError
from vagram_jax.storage.files import ResultsError

OBS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
SEEDS = (3, 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was trained and saved, and the states that training ended with."""
    folder = policy_cases.create(tmp_path_factory.mktemp("trained"))
    env = envs.from_config(policy_cases.ENV)
    for states, progress in runner.train(policy_cases.RUN, policy_cases.CONFIG, env):
        policy_cases.save(folder, checkpoint.pack(states), progress.env_steps)
    return folder, states


@pytest.fixture
def saved(tmp_path):
    """A run that was saved at step 11."""
    folder = policy_cases.create(tmp_path)
    policy_cases.save(folder, policy_cases.drawn(11), 11)
    return folder


def change(folder, **keys):
    """Writes other settings into the record of a run."""
    record = files.read_json(folder / "config.json")
    record["config"] |= keys
    (folder / "config.json").write_text(json.dumps(record))


def actor_of(states, seed):
    return jax.tree.map(lambda x: x[SEEDS.index(seed)], states.agent.actor)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_policy_acts_as_the_state_that_training_ended_with(trained, seed):
    folder, states = trained
    policy = vagram_jax.load_policy(folder, seed=seed)
    assert (policy.seed, policy.env_steps, policy.diverged_at) == (seed, 14, None)
    wanted = sac.act_mean(actor_of(states, seed), OBS, config=policy_cases.CONFIG.sac)
    np.testing.assert_array_equal(policy.act(OBS), wanted)


def test_a_policy_is_the_tanh_of_the_networks_mean(trained):
    folder, states = trained
    layer = jax.tree.map(np.float64, actor_of(states, 3)["params"]["mlp"]["Dense_0"])
    action = policies.load_policy(str(folder), 3).act(OBS)
    for found, obs in zip(action, OBS, strict=True):
        mean, _ = oracles_sac.policy([(layer["kernel"], layer["bias"])], obs)
        np.testing.assert_allclose(found, np.tanh(mean), atol=1e-6)  # float32


def test_seeds_have_policies_of_their_own_and_none_means_the_first(trained):
    first, other = (policies.load_policy(trained[0], seed).act(OBS) for seed in SEEDS)
    assert np.abs(first - other).max() > 0.01
    default = policies.load_policy(trained[0])
    assert default.seed == 3
    np.testing.assert_array_equal(default.act(OBS), first)


def test_act_is_the_same_for_one_state_jitted_and_vmapped(trained):
    policy = policies.load_policy(trained[0])
    wanted = policy.act(OBS)
    assert wanted.shape == (5, 1)
    for found in (
        jnp.stack([policy.act(obs) for obs in OBS]),
        jax.jit(policy.act)(OBS),
        jax.vmap(policy.act)(OBS),
        policy.act(OBS[None])[0],
        policy.act(OBS.tolist()),
    ):
        # One product of matrices or five have their sums in another order.
        np.testing.assert_allclose(found, wanted, atol=1e-6)


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


def test_the_environment_is_the_one_of_the_run(saved):
    change(saved, action_repeat=2)
    env, pendulum = policies.load_policy(saved).env, envs.make("pendulum")
    assert episodes.length(env) == 12
    start, wanted = (each.reset(jax.random.key(1)) for each in (env, pendulum))
    found = env.step(start, jnp.ones(1))
    for _ in range(2):
        wanted = pendulum.step(wanted, jnp.ones(1))
    np.testing.assert_allclose(found.obs, wanted.obs, atol=1e-6)  # scan or no scan


def test_a_policy_that_diverged_is_the_one_before(tmp_path):
    folder, arrays = policy_cases.create(tmp_path), policy_cases.drawn(14)
    # A frozen seed keeps its state, in a checkpoint with the steps of the others.
    arrays[".env_steps"][1], arrays[".diverged_at"][1] = 8, 11
    policy_cases.save(folder, arrays, 14)
    healthy, diverged = (policies.load_policy(folder, seed) for seed in SEEDS)
    assert (healthy.env_steps, healthy.diverged_at) == (14, None)
    assert (diverged.env_steps, diverged.diverged_at) == (8, 11)


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_loaded(saved):
    wanted = policies.load_policy(saved).act(OBS)
    policy_cases.save(saved, policy_cases.drawn(14, seed=1), 14)
    assert np.abs(policies.load_policy(saved).act(OBS) - wanted).max() > 0.01
    arrays = saved / "checkpoints" / "000000014" / "seeds-3-4" / "arrays.npz"
    data = bytearray(arrays.read_bytes())
    data[len(data) // 2] ^= 1
    arrays.write_bytes(data)
    told = []
    found = policies.load_policy(saved, tell=told.append).act(OBS)
    np.testing.assert_array_equal(found, wanted)
    assert len(told) == 1
    assert str(arrays) in told[0]


def refusal(folder, *args, **options):
    """What a load that is refused says, and with which error."""
    with pytest.raises((ResultsError, ConfigError)) as caught:
        policies.load_policy(folder, *args, tell=lambda _: None, **options)
    assert "\n" not in str(caught.value)
    return type(caught.value), str(caught.value)


def test_a_folder_that_is_no_run_is_refused(tmp_path, saved):
    for place, hint in (
        (tmp_path / "nowhere", "check the path"),
        (tmp_path, "check the path"),
        (saved / "config.json", "check the path"),
        (tmp_path / "study", "it is a study with sac"),
    ):
        kind, said = refusal(place)
        assert kind is ResultsError
        assert said.startswith(f"{place}: no run; ")
        assert said.endswith(hint)


@pytest.mark.parametrize("seed", [0, 2, 5, -1, "3"])
def test_a_seed_that_the_run_has_not_is_refused(saved, seed):
    kind, said = refusal(saved, seed)
    assert kind is ConfigError
    assert f"seed={seed!r}; the run has 3 to 4" in said


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path, saved):
    empty = policy_cases.create(tmp_path / "empty")
    (saved / "checkpoints" / "000000011" / "seeds-3-4" / "arrays.npz").write_bytes(b"")
    for folder in (empty, saved):
        kind, said = refusal(folder, 4)
        assert kind is CheckpointError
        assert "no undamaged checkpoint of seed 4; train the run first" in said


def test_settings_of_another_version_are_refused_with_its_name(saved):
    record = files.read_json(saved / "config.json")
    record["config"]["sac"]["width"] = 8
    record["versions"]["vagram_jax"] = "7.1"
    files.write_json(saved / "config.json", record)
    kind, said = refusal(saved)
    assert kind is ConfigError
    assert "sac.width" in said
    assert "vagram_jax 7.1 made this run" in said
    del record["versions"]
    files.write_json(saved / "config.json", record)
    assert "vagram_jax (unknown) made this run" in refusal(saved)[1]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 3}'])
def test_a_record_that_holds_no_config_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    kind, said = refusal(saved)
    assert kind is ResultsError
    assert said.startswith(f"{saved / 'config.json'}: ")


def test_an_environment_that_cannot_be_found_is_refused(saved):
    change(saved, env="nowhere_at_all:Task")
    kind, said = refusal(saved)
    assert kind is ConfigError
    assert "env='nowhere_at_all:Task'" in said


def test_a_checkpoint_of_another_network_is_refused(saved):
    change(saved, sac={"hidden": [4]})
    kind, said = refusal(saved)
    assert kind is CheckpointError
    assert "['Dense_0']['bias'] is ('float32', 2), this run has ('float32', 4)" in said


def test_of_a_checkpoint_the_actor_and_two_counters_are_asked_for(saved):
    env = envs.from_config(policy_cases.ENV)
    names = checkpoint.named(policies._shapes(env, policy_cases.CONFIG.sac))
    layer = ".agent.actor['params']['mlp']['Dense_0']"
    actor = {f"{layer}['{part}']" for part in ("kernel", "bias")}
    assert set(names) == {*actor, ".env_steps", ".diverged_at"}
