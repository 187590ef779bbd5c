"""An export holds what was loaded, to the bit, and says how good it is."""

import json
import sys

import jax
import numpy as np
import policy_cases
import pytest
from safetensors import numpy as safetensors

from vagram_jax import sac
from vagram_jax.config import ConfigError
from vagram_jax.run import exports, model_card, trained
from vagram_jax.storage import files, records
from vagram_jax.storage.checkpoint import CheckpointError

OBS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
FILM = b"a film"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a model."""
    return policy_cases.saved_with_model(tmp_path_factory.mktemp("run"))


def export(run, folder, film=None):
    """Exports seed 4."""
    loaded, record = trained.load(run, 4), records.read(run)
    said = {"returns": [-3.0, -1.0], "no_film": "" if film else "no screen"}
    card = model_card.text(loaded, record, title="study/mse", **said)
    state, seed = loaded.state, loaded.seed
    exports.write(folder, state, seed=seed, record=record, card=card, film=film)
    return loaded


def test_the_safetensors_alone_give_the_same_actions_to_the_bit(run, tmp_path):
    loaded = export(run, tmp_path / "out")
    arrays = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    layer = "agent.actor.params.mlp.Dense_0"
    actor = {"kernel": arrays[f"{layer}.kernel"], "bias": arrays[f"{layer}.bias"]}
    agent = loaded.state.agent.replace(
        actor={"params": {"mlp": {"Dense_0": actor}}},
        obs_mean=arrays["agent.obs_mean"],
        obs_std=arrays["agent.obs_std"],
    )
    with jax.default_matmul_precision(loaded.matmul_precision):
        action = sac.act_mean(agent, OBS, config=loaded.config.sac)
    np.testing.assert_array_equal(action, loaded.act(OBS))


def test_an_export_is_loaded_like_a_run_with_the_same_bits(run, tmp_path):
    loaded = export(run, tmp_path / "out")
    again = trained.load(tmp_path / "out")
    assert (again.seed, again.env_steps, again.diverged_at) == (4, 11, None)
    leaves, expected = (jax.tree.leaves(each.state) for each in (again, loaded))
    for leaf, other in zip(leaves, expected, strict=True):
        np.testing.assert_array_equal(leaf, other)
    assert jax.tree.structure(again.state) == jax.tree.structure(loaded.state)
    action = np.ones((5, 1), np.float32)
    for one, other in zip(
        again.predict(OBS, action), loaded.predict(OBS, action), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def head_of(card):
    """The metadata of a model card; its values are JSON, which is YAML."""
    _, head, _ = card.split("---\n")
    pairs = (line.split(": ", 1) for line in head.splitlines())
    return {key: json.loads(value) for key, value in pairs}


def test_the_card_has_the_return_and_the_metadata_of_hugging_face(run, tmp_path):
    export(run, tmp_path / "out", film=FILM)
    card = (tmp_path / "out" / "README.md").read_text()
    head = head_of(card)
    assert head["library_name"] == "vagram_jax"
    assert {"reinforcement-learning", "pendulum", "mse"} <= set(head["tags"])
    ((result,),) = [each["results"] for each in head["model-index"]]
    assert result["dataset"] == {"name": "pendulum", "type": "pendulum"}
    ((metric),) = result["metrics"]
    assert metric["type"] == "mean_reward"
    assert metric["value"] == "-2.00 +/- 1.00"  # of -3 and -1
    assert "# study/mse, seed 4" in card
    assert "-2.00 +/- 1.00" in card.split("---\n")[2]
    assert "an ensemble of 3 dynamics models" in card
    assert (tmp_path / "out" / "replay.mp4").read_bytes() == FILM
    assert "replay.mp4" in card
    assert str(tmp_path) not in card


def test_the_card_says_why_there_is_no_film(run, tmp_path):
    export(run, tmp_path / "out")
    assert "No film: no screen." in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "replay.mp4").exists()


def test_a_run_without_a_model_is_exported_without_one(tmp_path):
    folder = policy_cases.create(tmp_path)
    policy_cases.save(folder, policy_cases.drawn(11), 11)
    loaded = export(folder, tmp_path / "out")
    arrays = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in arrays if name.startswith("dynamics")]
    again = trained.load(tmp_path / "out")
    np.testing.assert_array_equal(again.act(OBS), loaded.act(OBS))
    assert "no dynamics model (plain SAC)" in (tmp_path / "out/README.md").read_text()


def test_a_damaged_export_is_refused(run, tmp_path):
    export(run, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="that of config"):
        trained.load(tmp_path / "out")
    record = files.read_json(tmp_path / "out" / "config.json")
    for broken in ({}, {"seed": "4"}, 7):
        files.write_json(tmp_path / "out" / "config.json", record | {"export": broken})
        with pytest.raises(CheckpointError, match="export"):
            trained.load(tmp_path / "out")


def test_another_seed_than_the_exported_one_is_refused(run, tmp_path):
    export(run, tmp_path / "out")
    with pytest.raises(ConfigError, match="seed=3; the run has 4"):
        trained.load(tmp_path / "out", 3)


def test_a_folder_that_is_not_empty_is_refused_and_stays(run, tmp_path):
    for target in (run, tmp_path / "file"):
        (tmp_path / "file").write_text("mine")
        before = sorted(run.rglob("*"))
        with pytest.raises(ConfigError, match="exists and isn't an empty folder"):
            export(run, target)
        assert sorted(run.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_without_safetensors_the_extra_is_named(run, tmp_path, monkeypatch):
    export(run, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    message = r'safetensors isn\'t installed; pip install "vagram_jax\[export\]"'
    for action in (
        lambda: exports.check(tmp_path / "new"),
        lambda: trained.load(tmp_path / "out"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)
