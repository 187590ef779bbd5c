"""Data that a run starts from: what is read, what is refused, and what is written."""

import sys
import types

import numpy as np
import pytest
from data_cases import ROWS, arrays, assert_rows, saved

from vagram_jax.config import ConfigError
from vagram_jax.run import datasets


def test_a_file_is_read_as_it_is(tmp_path):
    data = datasets.load(saved(tmp_path))
    assert_rows(data.transitions, arrays())
    assert (data.num_rows, data.offline) == (ROWS, False)
    assert data.transitions.obs.dtype == np.float32
    assert data.transitions.terminated.dtype == bool


def test_the_names_and_types_of_d4rl_are_accepted(tmp_path):
    own = arrays()
    path = tmp_path / "d4rl.npz"
    np.savez(
        path,
        observations=own["obs"].astype(np.float64),
        actions=own["action"],
        rewards=own["reward"].astype(np.float64),
        next_observations=own["next_obs"],
        terminals=own["terminated"].astype(np.float32),
        timeouts=np.ones(ROWS, np.int64),
        infos=np.array([None]),  # pickled, and not read
    )
    # A step that terminates at the time limit counts as terminated.
    expected = own | {"truncated": ~own["terminated"]}
    assert_rows(datasets.load(str(path)).transitions, expected)


def test_truncated_may_be_missing(tmp_path):
    data = datasets.load(saved(tmp_path, truncated=None))
    assert not data.transitions.truncated.any()


def test_the_digest_is_that_of_the_rows(tmp_path):
    path, other = saved(tmp_path), tmp_path / "compressed.npz"
    np.savez_compressed(other, **arrays(), name="other")
    settings = datasets.load(path).settings
    assert settings == datasets.load(str(other)).settings
    offline = datasets.load(path, offline=True).settings
    assert offline == settings | {"offline": True}
    assert settings["rows"] == ROWS
    changed = arrays()["reward"]
    changed[3] = np.nextafter(changed[3], np.float32(9))
    again = datasets.load(saved(tmp_path, reward=changed)).settings
    assert again["sha256"] != settings["sha256"]


def test_what_is_saved_is_read_back_with_the_same_bytes(tmp_path):
    data = datasets.load(saved(tmp_path))
    for name in ("one.npz", "two.npz"):
        datasets.save(tmp_path / name, data.transitions)
    assert_rows(datasets.load(str(tmp_path / "one.npz")).transitions, arrays())
    one, two = ((tmp_path / name).read_bytes() for name in ("one.npz", "two.npz"))
    assert one == two


def with_row(name, value, row=5):
    array = arrays()[name].astype(np.float64)
    array[row] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"next_obs": None}, "no array next_obs; obs, .* it has: obs, action, reward"),
        ({"terminated": None}, "no array terminated; obs"),
        (with_row("obs", np.nan), "obs isn't finite in 1 rows, first in row 5; fin"),
        (with_row("reward", -np.inf), "reward isn't finite in 1 rows, first in row 5"),
        (with_row("reward", 1e300), "reward isn't finite in 1 rows"),  # in float32
        (with_row("action", -1.5), "action has -1.5 in row 5; -1 to 1 is accepted"),
        (with_row("terminated", 0.5), "terminated is float64 or has values other than"),
        ({"obs": np.zeros(12)}, r"obs has shape \[12\]; \[N, obs_dim\] is accepted"),
        ({"obs": np.zeros((12, 0))}, r"obs has shape \[12, 0\]; \[N, obs_dim\] is"),
        ({"action": np.zeros(12)}, r"action has shape \[12\]; \[N, action_dim\] is"),
        ({"obs": np.zeros((1, 1))}, r"obs has shape \[1, 1\]; at least two rows"),
        ({"reward": np.zeros((12, 1))}, r"reward has shape \[12, 1\]; with obs \[12"),
        ({"next_obs": np.zeros((11, 1))}, r"next_obs has shape \[11, 1\]; with obs"),
        ({"next_obs": np.zeros((12, 2))}, r"it must be \[12, 1\]$"),
        ({"truncated": np.zeros(3)}, r"truncated has shape \[3\]; with obs \[12, 1\]"),
        ({"reward": np.zeros(12, complex)}, "reward is complex128; numbers are accept"),
        ({"reward": np.array(["1"] * 12)}, "reward is <U1; numbers are accepted"),
        ({"obs": np.array([[None]] * 12)}, "Object arrays cannot be loaded when allow"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        datasets.load(saved(tmp_path, **changes))
    text = str(caught.value)
    assert text.startswith(f"data={tmp_path}/data.npz: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; a file of numpy.savez"),
        (b"", "EOFError: No data left in file; a file of"),
        (b"PK\x03\x04 cut off", "BadZipFile: File is not a zip file; a file of"),
        (b"no arrays\n", "This file contains pickled"),
    ],
)
def test_a_file_that_holds_no_arrays_is_refused(tmp_path, content, message):
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        datasets.load(str(path))


def test_a_single_array_and_a_damaged_file_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="it holds one array without a name; a fi"):
        datasets.load(str(tmp_path / "one.npy"))
    path = saved(tmp_path)
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[200] ^= 255
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="BadZipFile: Bad CRC-32 for file 'obs"):
        datasets.load(path)
    with pytest.raises(ConfigError, match="Is a directory; a file of numpy"):
        datasets.load(str(tmp_path))


# ---- Minari


def test_without_minari_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ConfigError) as caught:
        datasets.load("minari:toy/walk-v0")
    assert str(caught.value) == (
        'data=minari:toy/walk-v0: minari is missing; pip install "vagram_jax[minari]"'
    )


@pytest.fixture
def minari(tmp_path, monkeypatch):
    """Minari with an empty folder of data sets."""
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return minari


def create(minari, name, action, observation_space=None):
    """Creates a data set of two episodes; returns the observations of both."""
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    rng, buffers = np.random.default_rng(0), []
    for length, terminated in ((4, True), (3, False)):
        ends = np.arange(length) == length - 1
        buffers.append(
            EpisodeBuffer(
                observations=list(rng.normal(size=(length + 1, 3)).astype(np.float32)),
                actions=list(np.full((length, 1), action, np.float32)),
                rewards=list(rng.normal(size=length)),
                terminations=list(ends & terminated),
                truncations=list(ends & (not terminated)),
            )
        )
    minari.create_dataset_from_buffers(
        name,
        buffers,
        observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float32),
        action_space=spaces.Box(-2.0, 4.0, (1,), np.float32),
    )
    return buffers


def test_a_minari_data_set_has_true_successors_and_scaled_actions(minari):
    buffers = create(minari, "toy/walk-v0", 2.5)
    rows = datasets.load("minari:toy/walk-v0").transitions
    obs = [np.stack(each.observations) for each in buffers]
    np.testing.assert_array_equal(rows.obs, np.concatenate([x[:-1] for x in obs]))
    np.testing.assert_array_equal(rows.next_obs, np.concatenate([x[1:] for x in obs]))
    reward = np.concatenate([each.rewards for each in buffers])
    np.testing.assert_array_equal(rows.reward, reward.astype(np.float32))
    # 2.5 is halfway from the center of the bounds, 1, to the upper one.
    np.testing.assert_array_equal(rows.action, np.full((7, 1), 0.5, np.float32))
    np.testing.assert_array_equal(np.flatnonzero(rows.terminated), [3])
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), [6])


def test_a_minari_data_set_can_be_refused(minari):
    with pytest.raises(ConfigError, match="Dataset toy/no-v0 not found locally"):
        datasets.load("minari:toy/no-v0")
    with pytest.raises(ConfigError, match="a data set on this machine is accepted; `m"):
        datasets.load("minari:no name")
    create(minari, "toy/far-v0", 4.5)
    with pytest.raises(ConfigError, match=r"action has 1\.16667 in row 0; -1 to 1 is"):
        datasets.load("minari:toy/far-v0")


def test_observations_of_a_minari_data_set_must_be_vectors(monkeypatch):
    episode = types.SimpleNamespace(observations={"x": np.zeros(3)}, actions=None)
    stored = types.SimpleNamespace(
        iterate_episodes=lambda: iter([episode]), action_space=None
    )
    fake = types.SimpleNamespace(load_dataset=lambda name: stored)
    monkeypatch.setitem(sys.modules, "minari", fake)
    with pytest.raises(ConfigError, match="are dicts, or it is empty; vectors are acc"):
        datasets.load("minari:toy/dict-v0")
