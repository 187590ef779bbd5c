"""Data that a run starts from: what is read and refused, and what training does."""

import sys
import types

import commands
import jax
import numpy as np
import pytest
import session_cases as cases
from command_cases import call
from session_cases import programs_once

import vagram_jax
from vagram_jax.cli import compare, sweep, train
from vagram_jax.config import ConfigError
from vagram_jax.run import datasets, exports, loop, trained
from vagram_jax.storage import checkpoint, files, results

__all__ = ["call", "programs_once"]
FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
ROWS = 12


def arrays(rows=ROWS, obs_dim=1, seed=0):
    """Random arrays of a file."""
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.normal(size=(rows, obs_dim)).astype(np.float32),
        "action": rng.uniform(-1, 1, size=(rows, 1)).astype(np.float32),
        "reward": rng.normal(size=rows).astype(np.float32),
        "next_obs": rng.normal(size=(rows, obs_dim)).astype(np.float32),
        "terminated": rng.uniform(size=rows) < 0.3,
        "truncated": np.zeros(rows, bool),
    }


def saved(folder, name="data.npz", **changes):
    """The path of a file with some arrays changed; None leaves one out."""
    given = arrays() | changes
    np.savez(folder / name, **{k: v for k, v in given.items() if v is not None})
    return str(folder / name)


def assert_rows(transitions, expected, rows=slice(None)):
    for field in FIELDS:
        actual = np.asarray(getattr(transitions, field))
        np.testing.assert_array_equal(actual[rows], expected[field], err_msg=field)


# ---- reading


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


# ---- training


def spec(name="run", *, offline=False, rows=ROWS, total_steps=12):
    """A run that starts from data."""
    transitions = datasets.from_arrays(arrays(rows))
    return cases.spec(
        name,
        config=cases.CONFIG.replace(warmup_steps=0, replay_capacity=40),
        run_config=cases.RUN.replace(total_steps=total_steps),
        data=datasets.Dataset("data.npz", transitions, offline),
    )


@pytest.fixture(scope="module", params=[False, True], ids=["start", "offline"])
def run(request, tmp_path_factory, programs_once):
    """A results folder, and the specification of its run."""
    root, one = tmp_path_factory.mktemp("data"), spec(offline=request.param)
    lines = cases.train(root, one)
    steps = [line.split(",")[0] for line in lines if ": step " in line]
    assert steps == [f"run: step {n} of 12" for n in range(0, 13, 3)]
    return root, one


def test_all_seeds_begin_with_the_rows_and_take_no_random_steps(run):
    root, one = run
    for seed in range(cases.SEEDS):
        rows = trained.load_transitions(cases.folder_of(root), seed)
        assert_rows(rows, arrays(), slice(ROWS))
        # Offline nothing is added; else twelve steps of the agent.
        assert rows.reward.shape == (ROWS + 12 * (not one.data.offline),)
    steps = cases.last_states(root, step=12)[".env_steps"]
    np.testing.assert_array_equal(steps, [12, 12])


def test_the_agent_is_trained(run):
    folder = cases.folder_of(run[0])
    first, last = (checkpoint.load(folder, n, [0]) for n in checkpoint.steps(folder))
    moved = [name for name in last if name.startswith(".agent.actor")]
    assert moved
    assert all(np.any(first[name] != last[name]) for name in moved)


def test_offline_the_environment_stays_at_its_reset(run):
    root, one = run
    folder = cases.folder_of(root)
    first, last = (checkpoint.load(folder, n, [0]) for n in checkpoint.steps(folder))
    same = [np.array_equal(first[n], last[n]) for n in last if n.startswith(".episode")]
    assert all(same) == one.data.offline


def test_the_record_has_digest_and_size(run):
    root, one = run
    record = files.read_json(cases.folder_of(root) / "config.json")
    assert record["config"]["data"] == one.data.settings
    assert record["config"]["warmup_steps"] == 0


@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_killed_run_resumes_to_the_same_bytes(run, tmp_path, killed_at):
    root, one = run
    cases.train(tmp_path, one, killed_at=killed_at)
    lines = cases.train(tmp_path, one, resume=True)
    assert any("resuming from step" in line for line in lines) == (killed_at > 1)
    own, expected = (cases.folder_of(r) / "metrics.csv" for r in (tmp_path, root))
    assert own.read_bytes() == expected.read_bytes()
    cases.assert_same_states(
        cases.last_states(tmp_path, step=12), cases.last_states(root, step=12)
    )


def test_a_run_with_other_data_or_without_it_is_not_resumed(run, tmp_path):
    _, one = run
    cases.train(tmp_path, one, killed_at=3)
    other = spec(offline=one.data.offline, rows=ROWS + 1)
    with pytest.raises(ValueError, match=r"data\.rows was 12, is 13; data\.sha256 was"):
        cases.train(tmp_path, other, resume=True)
    without = cases.spec(config=one.algorithm.replace(warmup_steps=2))
    with pytest.raises(ValueError, match=r"data\.rows was 12, is None"):
        cases.train(tmp_path, without, resume=True)


def test_runs_with_different_data_share_no_program(tmp_path, programs_once):
    specs = [spec(), spec("other", offline=True)]
    cases.train(tmp_path, *specs)
    sizes = [
        trained.load_transitions(cases.folder_of(tmp_path, name)).reward.shape[0]
        for name in ("run", "other")
    ]
    assert sizes == [24, 12]


def test_a_full_buffer_is_loaded_with_its_oldest_row_first(tmp_path, programs_once):
    one = spec()
    config = one.algorithm.replace(replay_capacity=ROWS + 3)
    cases.train(
        tmp_path, cases.spec(config=config, run_config=one.run_config, data=one.data)
    )
    rows = trained.load_transitions(cases.folder_of(tmp_path))
    assert rows.reward.shape == (15,)
    expected = {name: array[9:] for name, array in arrays().items()}
    assert_rows(rows, expected, slice(3))
    # The steps of an episode follow each other.
    goes_on = ~(rows.terminated | rows.truncated)[3:-1]
    assert goes_on.any()
    np.testing.assert_array_equal(rows.next_obs[3:-1][goes_on], rows.obs[4:][goes_on])


def test_the_card_of_an_export_says_what_it_was_trained_on(run, tmp_path):
    root, one = run
    loaded, folder = trained.load(cases.folder_of(root)), tmp_path / "out"
    contents = exports.Contents("study/run", [1.0])
    exports.write(folder, loaded, run=cases.folder_of(root), contents=contents)
    expected = "12 environment steps, which followed 12 transitions of a data set,"
    if one.data.offline:
        expected = "12 steps of updates, on 12 transitions of a data set alone"
    assert f"trained for {expected}\n" in (folder / "README.md").read_text()


def test_training_in_python_starts_from_the_rows(run):
    _, one = run
    configs = one.run_config.replace(total_steps=3), one.algorithm, cases.Line()
    for state, progress in loop.train(*configs, data=one.data):
        size = ROWS + (0 if one.data.offline else progress.env_steps)
        np.testing.assert_array_equal(state.replay.size, [size] * cases.SEEDS)
        assert_rows(
            jax.tree.map(lambda x: x[1], state.replay.data), arrays(), slice(ROWS)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"replay_capacity": 11},
            "replay_capacity=11; at least 12, the rows of",
        ),
        ({"warmup_steps": 3}, "warmup_steps=3; a run on data=data.npz alone takes no"),
    ],
)
def test_settings_that_contradict_the_data_are_refused(changes, message):
    one = spec(offline=True)
    algorithm = one.algorithm.replace(**changes)
    run_config = one.run_config.replace(total_steps=15)
    with pytest.raises(ConfigError, match=message):
        loop.check(run_config, algorithm, cases.Line(), one.data)


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_without_data_random_steps_are_needed(warmup_steps):
    algorithm = cases.CONFIG.replace(warmup_steps=warmup_steps)
    with pytest.raises(ConfigError, match=f"warmup_steps={warmup_steps}; at least 2 w"):
        loop.check(cases.RUN, algorithm, cases.Line())


# ---- commands


@pytest.fixture
def spring(tmp_path):
    """A file for the task of `command_cases`."""
    return saved(tmp_path, **arrays(obs_dim=2))


STEPS = "--config.total_steps=6"


def test_train_offline_and_its_buffer_as_data_of_another_run(call, tmp_path, spring):
    args = (f"--results={tmp_path}", STEPS)
    status, out, err = call(train, *args, "--study=one", f"--data={spring}")
    assert (status, err) == (0, "")
    first = tmp_path / "one" / "vagram"
    exported = tmp_path / "new" / "replay.npz"
    status, out, err = commands.call(
        "export", str(first), f"--replay={exported}", "--seed=1"
    )
    assert (status, err) == (0, "")
    assert out == f"{exported}: 18 transitions of one/vagram\n"
    rows = trained.load_transitions(first, 1)
    args = (*args, "--study=two", f"--data={exported}", "--offline")
    status, out, err = call(train, *args)
    assert (status, err) == (0, "")
    second = tmp_path / "two" / "vagram"
    expected = {name: getattr(rows, name) for name in FIELDS}
    for seed in range(2):
        again = trained.load_transitions(second, seed)
        assert again.reward.shape == (18,)
        assert_rows(again, expected)
    # There are no new transitions to measure the model on.
    columns = files.read_rows(second / "model.csv")[0]
    assert not [name for name in columns if name.startswith("new_")]
    assert vagram_jax.load(second).env_steps == 6
    # A renamed file is the same data, a changed one isn't.
    renamed = exported.rename(tmp_path / "renamed.npz")
    args = (f"--results={tmp_path}", "--study=two", f"--data={renamed}", "--offline")
    args = (*args, "--config.total_steps=9", "--resume")
    np.savez(tmp_path / "changed.npz", **(expected | {"reward": rows.reward + 1}))
    changed = [x.replace("renamed", "changed") for x in args]
    status, out, err = call(train, *changed)
    assert (status, err.count("\n")) == (2, 1)
    assert "can't be resumed with other settings: data.sha256 was " in err
    assert call(train, *args)[0] == 0


def test_compare_and_sweep_start_all_runs_from_the_data(call, tmp_path, spring):
    args = (f"--results={tmp_path}", f"--data={spring}", STEPS)
    assert call(compare, *args, "--study=c", "--losses=vagram,sac")[0] == 0
    assert (
        call(sweep, *args, "--study=s", "--grid=loss=sac;sac.discount=0.5,0.9")[0] == 0
    )
    runs = [tmp_path / "c" / name for name in ("vagram", "sac")]
    runs += [path for path in (tmp_path / "s").iterdir() if path.is_dir()]
    assert len(runs) == 4
    for folder in runs:
        assert results.is_finished(folder)
        rows = trained.load_transitions(folder)
        assert_rows(rows, arrays(obs_dim=2), slice(ROWS))


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (train, ["--offline"], "--offline: only with --data; add it"),
        (train, ["--data=no.npz"], "data=no.npz: No such file or directory; a file"),
        (train, ["--data="], "data=: No such file or directory; a file"),
        (
            train,
            ["--data={}", "--config.warmup_steps=5"],
            "--config.warmup_steps=5: --data sets warmup_steps; leave one out",
        ),
        (
            sweep,
            ["--data={}", "--grid=warmup_steps=5,8"],
            "--data={}: it sets warmup_steps; don't vary it",
        ),
        (
            train,
            ["--data={}", "--config.distractors=3"],
            "data={}: obs has 2 dimensions; 5, those of Spring with its distractors, a",
        ),
        (
            compare,
            ["--data={}", "--config.replay_capacity=11"],
            "config: replay_capacity=11; at least 12, the rows of data={}",
        ),
        (train, ["--data={}", "--config.total_steps=7"], "config: total_steps=7; warm"),
        (train, ["--data=minari:"], "data=minari:"),
    ],
)
def test_bad_flags_end_with_one_line_and_leave_nothing(
    call, tmp_path, spring, command, args, message
):
    args = [arg.format(spring) for arg in args]
    status, out, err = call(command, f"--results={tmp_path / 'results'}", *args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message.format(spring))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--replay={}/a.npy"], "--replay={}/a.npy; a new .npz is accepted"),
        (
            ["--replay={}/data.npz"],
            "--replay={}/data.npz; it exists; a new",
        ),
        (["--replay="], "--replay=; a new .npz is accepted"),
        (
            ["--replay={}/a.npz", "--to={}/b"],
            "--to and --replay exclude each other",
        ),
        (["--replay={}/a.npz", "--seed=7"], "seed=7; the run has 0 to 1"),
        ([], "--to=; a new or empty folder is accepted; or --replay=FILE.npz for the"),
    ],
)
def test_bad_flags_of_export_end_with_one_line(run, tmp_path, args, message):
    saved(tmp_path)
    args = [arg.format(tmp_path) for arg in args]
    status, out, err = commands.call("export", str(cases.folder_of(run[0])), *args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message.format(tmp_path) in err
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


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
