"""Training that starts from data or is trained on it alone, and the buffer as data."""

import commands
import jax
import numpy as np
import pytest
import session_cases as cases
from command_cases import call
from data_cases import FIELDS, ROWS, arrays, assert_rows, saved
from session_cases import programs_once

import vagram_jax
from vagram_jax.cli import compare, sweep, train
from vagram_jax.config import ConfigError
from vagram_jax.run import datasets, loop, model_card, trained
from vagram_jax.storage import checkpoint, files, records, results

__all__ = ["call", "programs_once"]


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


def test_the_card_of_an_export_says_what_it_was_trained_on(run):
    root, one = run
    folder = cases.folder_of(root)
    loaded, record = trained.load(folder), records.read(folder)
    card = model_card.text(loaded, record, title="study/run", returns=[1.0])
    expected = "12 environment steps, which followed 12 transitions of a data set,"
    if one.data.offline:
        expected = "12 steps of updates, on 12 transitions of a data set alone"
    assert f"trained for {expected}\n" in card


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
