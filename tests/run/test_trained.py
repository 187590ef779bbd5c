"""What is loaded acts, predicts and values as the state that training ended with."""

import functools
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
from vagram_jax import envs, sac
from vagram_jax.config import ConfigError
from vagram_jax.envs import episodes
from vagram_jax.run import states, trained
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
        policy = vagram_jax.load(session_cases.folder_of(whole), seed=seed)
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
    first, other = (trained.load(saved, seed).act(OBS) for seed in SEEDS)
    assert np.abs(first - other).max() > 0.01
    default = trained.load(str(saved))
    assert default.seed == 3
    np.testing.assert_array_equal(default.act(OBS), first)


def test_act_is_the_same_for_one_state_jitted_and_vmapped(saved):
    policy = trained.load(saved)
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
    policy = trained.load(saved)
    with pytest.raises(ValueError, match=r"act: obs has shape .*; \(\.\.\., 3\)"):
        policy.act(jnp.zeros(shape))


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_act_multiplies_with_the_precision_of_the_run(saved, precision):
    change(saved, matmul_precision=precision)
    policy = trained.load(saved)
    program = str(jax.make_jaxpr(policy.act)(OBS))
    assert re.findall(r"Precision\.(\w+)", program) == [precision.upper()] * 2


def test_a_policy_has_the_environment_of_the_run(saved):
    change(saved, action_repeat=2)
    env, pendulum = trained.load(saved).env, envs.make("pendulum")
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
    healthy, diverged = (trained.load(folder, seed) for seed in SEEDS)
    assert (healthy.env_steps, healthy.diverged_at) == (14, None)
    assert (diverged.env_steps, diverged.diverged_at) == (8, 11)


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_loaded(saved):
    expected = trained.load(saved).act(OBS)
    policy_cases.save(saved, policy_cases.drawn(14, seed=1), 14)
    assert np.abs(trained.load(saved).act(OBS) - expected).max() > 0.01
    arrays = saved / "checkpoints" / "000000014" / "seeds-3-4" / "arrays.npz"
    data = bytearray(arrays.read_bytes())
    data[len(data) // 2] ^= 1
    arrays.write_bytes(data)
    lines = []
    result = trained.load(saved, report=lines.append).act(OBS)
    np.testing.assert_array_equal(result, expected)
    assert len(lines) == 1
    assert str(arrays) in lines[0]


def refusal(folder, *args, **options):
    """The class and the message of the error of a load that is refused."""
    with pytest.raises((ResultsError, ConfigError)) as caught:
        trained.load(folder, *args, report=lambda _: None, **options)
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


def test_only_networks_and_two_counters_are_read_from_a_checkpoint(saved):
    env = envs.from_config(policy_cases.ENV)
    names = states.named(trained.shapes_of(env, policy_cases.CONFIG))
    parts = (*(f"['Dense_0']['{x}']" for x in ("kernel", "bias")),)
    networks = {
        f".agent.{network}['params']['mlp']{part}"
        for network in ("actor", "critics", "target_critics")
        for part in parts
    }
    scales = {".agent.obs_mean", ".agent.obs_std"}
    assert set(names) == {*networks, *scales, ".env_steps", ".diverged_at"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What seed 4 of a run with a model has learned, and its arrays."""
    folder = policy_cases.saved_with_model(tmp_path_factory.mktemp("model"))
    arrays = policy_cases.drawn(11, config=policy_cases.WITH_MODEL)
    return trained.load(folder, 4), {name: x[1] for name, x in arrays.items()}


def test_predict_is_the_mean_of_the_elites_in_the_units_of_the_task(model):
    loaded, arrays = model
    action = np.ones((5, 1), np.float32)
    inputs = np.concatenate([OBS, action], axis=1).astype(np.float64)
    normalizer = {
        name: np.float64(arrays[f".dynamics.params.normalizer.{name}"])
        for name in ("input_mean", "input_std", "target_mean", "target_std")
    }
    inputs = (inputs - normalizer["input_mean"]) / normalizer["input_std"]
    layer = ".dynamics.params.network['params']['mlp']['Dense_0']"
    steps = []
    for member in (1, 2):  # the elites
        kernel, bias = (
            np.float64(arrays[f"{layer}['{part}']"][member])
            for part in ("kernel", "bias")
        )
        step = (inputs @ kernel + bias) * normalizer["target_std"]
        steps.append(step + normalizer["target_mean"])
    expected = np.mean(steps, axis=0)
    next_obs, reward = loaded.predict(OBS, action)
    # Single precision: normalizers that were drawn can be large.
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * np.abs(expected).max()}
    np.testing.assert_allclose(next_obs, OBS + expected[:, :3], **tolerance)
    np.testing.assert_allclose(reward, expected[:, 3], **tolerance)
    one = loaded.predict(OBS[0], action[0])
    assert (one[0].shape, one[1].shape) == ((3,), ())
    np.testing.assert_allclose(one[0], next_obs[0], **tolerance)


def test_value_fn_is_the_mean_of_the_values_of_training(model):
    loaded, _ = model
    expected = sac.value_fn(loaded.state.agent, config=loaded.config.sac)(OBS[0])
    assert expected.shape == (4,)  # two critics, two target critics
    np.testing.assert_array_equal(loaded.values(OBS[0]), expected)
    assert float(loaded.value_fn(OBS[0])) == pytest.approx(np.mean(expected.tolist()))
    gradient = jax.grad(loaded.value_fn)(jnp.asarray(OBS[0]))
    rows = jax.jacobian(loaded.values)(jnp.asarray(OBS[0]))
    np.testing.assert_allclose(gradient, rows.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_a_loss_takes_model_and_value_function_as_they_are(model):
    loaded, _ = model
    batch = {
        "obs": OBS,
        "action": np.ones((5, 1)),
        "next_obs": OBS,
        "reward": OBS[:, 0],
    }
    for value_fn in (loaded.value_fn, loaded.values):
        loss = functools.partial(vagram_jax.vagram_loss, value_fn=value_fn)
        gradient = jax.grad(loss)(loaded.dynamics, batch)
        sizes = jax.tree.map(lambda x: float(jnp.abs(x).max()), gradient.network)
        assert min(jax.tree.leaves(sizes)) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.predict(OBS, OBS), r"predict: action has shape \(5, 3\)"),
        (lambda x: x.predict(OBS, np.ones(1)), r"the same leading axes"),
        (lambda x: x.value_fn(OBS), r"value_fn: state has shape \(5, 3\); \(3,\) is"),
    ],
)
def test_an_argument_of_another_shape_is_refused(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model[0])


def test_a_run_without_a_model_has_values_but_predicts_nothing(saved):
    loaded = trained.load(saved)
    assert loaded.dynamics is None
    assert np.isfinite(loaded.value_fn(OBS[0]))
    with pytest.raises(ValueError, match=r"predict: this run has no model \(loss=none"):
        loaded.predict(OBS, np.ones((5, 1)))
