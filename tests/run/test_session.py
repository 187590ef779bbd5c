"""Runs on disk: tables, checkpoints, chunks, resuming, and shared programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rows_cases
import session_cases as cases
from session_cases import CONFIG, LAST, RUN, SEEDS, STEPS, programs_once, train, whole

from vagram_jax.config import ConfigError
from vagram_jax.run import devices, grid, loop, rows, session, vectorized
from vagram_jax.storage import checkpoint, files, lock, records

__all__ = ["programs_once", "whole"]
pytestmark = pytest.mark.usefixtures("programs_once")

MORE_SEEDS = RUN.replace(num_seeds=2 * SEEDS)


def resumed_steps(lines):
    """The steps that runs resumed from."""
    return [int(line.split()[-1]) for line in lines if "resuming from step" in line]


# Whole runs.


def test_train_runs_leaves_rows_of_all_seeds_and_the_last_checkpoints(whole):
    folder = cases.folder_of(whole)
    actual = [(row["seed"], row["env_steps"]) for row in cases.table(whole)]
    assert actual == [(seed, step) for seed in range(SEEDS) for step in STEPS]
    assert checkpoint.steps(folder) == STEPS[-checkpoint.KEPT :]
    # Plain SAC fits no model.
    names = {"config.json", "metrics.csv", "timing.csv", "checkpoints", "summary.json"}
    assert {path.name for path in folder.iterdir()} == names
    times = files.read_rows(folder / "timing.csv")
    assert [(row["seed"], row["env_steps"]) for row in times] == [(0, s) for s in STEPS]
    seconds = [row["wall_time_s"] for row in times]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_train_runs_records_labels_devices_and_settings(whole):
    record = records.read(cases.folder_of(whole))
    assert record["labels"] == {"loss": "sac"}
    assert record["device"] == devices.describe()
    assert record["layout"] == {"seed_mode": "vmap", "seed_chunk": 0}
    assert record["config"] == files.as_json(cases.spec().settings)


def test_train_runs_refuses_a_run_that_exists(whole):
    before = cases.table(whole)
    with pytest.raises(files.ResultsError, match="holds a finished run; --resume"):
        # The other one could be trained but comes after it.
        train(whole, cases.spec("another"), cases.spec())
    assert not cases.folder_of(whole, "another").exists()
    assert cases.table(whole) == before


def test_train_runs_checks_all_runs_before_it_trains_one(tmp_path):
    bad = cases.spec("bad", run_config=RUN.replace(total_steps=LAST + 1))
    with pytest.raises(ConfigError, match="total_steps=21"):
        train(tmp_path, cases.spec(), bad)
    assert not list(tmp_path.iterdir())


def test_train_runs_leaves_a_finished_run_unchanged(whole):
    folder = cases.folder_of(whole)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert train(whole, resume=True) == ["run: finished already"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_overwrite_trains_again_from_the_start(tmp_path, whole):
    train(tmp_path)
    train(tmp_path, killed_at=2, overwrite=True)
    assert {row["env_steps"] for row in cases.table(tmp_path)} == set(STEPS[:2])
    assert checkpoint.steps(cases.folder_of(tmp_path)) == STEPS[:1]
    train(tmp_path, resume=True)
    cases.assert_same_run(tmp_path, whole)


def test_own_folders_locks_folders_and_removes_those_it_made_for_nothing(tmp_path):
    folders = [tmp_path / "new" / name for name in ("one", "two")]
    with session.own_folders(folders):
        assert [lock.is_held(folder) for folder in folders] == [True, True]
        with (
            pytest.raises(lock.LockedError, match="two"),
            session.own_folders([tmp_path / "three", folders[1]]),
        ):
            pass
        assert not (tmp_path / "three").exists()
        (folders[0] / "metrics.csv").write_text("")
    assert [folder.exists() for folder in folders] == [True, False]
    assert not lock.is_held(folders[0])


# Resuming.


@pytest.mark.parametrize("killed_at", [1, 2, 4])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, whole, killed_at):
    train(tmp_path, killed_at=killed_at)
    lines = train(tmp_path, resume=True)
    # Rows are written before the checkpoint, so the last ones are computed again.
    steps = STEPS[killed_at - 2 : killed_at - 1] if killed_at > 1 else []
    assert resumed_steps(lines) == steps
    assert sum(": step " in line for line in lines) == len(STEPS) - killed_at + 1
    cases.assert_same_run(tmp_path, whole)


def test_a_run_that_ends_early_is_unfinished_and_resumes_to_the_same_bytes(
    tmp_path, whole
):
    seen = []

    def ends_early(chunk, progress):
        seen.append((chunk.runs[0].spec.name, progress.env_steps))
        return seen[-1] == ("early", STEPS[1])

    session.train_runs(
        [cases.spec("early"), cases.spec()],
        tmp_path,
        cases.STUDY,
        options=session.SessionOptions(layout=cases.LAYOUT),
        report=list,
        ends_early=ends_early,
    )
    early = [("early", step) for step in STEPS[:2]]
    assert seen == [*early, *(("run", step) for step in STEPS)]
    folder = cases.folder_of(tmp_path, "early")
    assert checkpoint.steps(folder) == STEPS[:2]
    assert not (folder / "summary.json").exists()
    assert not (folder / "failure.json").exists()
    cases.assert_same_run(tmp_path, whole)
    train(tmp_path, cases.spec("early"), resume=True)
    one, other = (
        cases.last_states(root, name)
        for root, name in ((tmp_path, "early"), (whole, "run"))
    )
    cases.assert_same_states(one, other)


def test_a_run_killed_before_its_summary_resumes_without_training(tmp_path, whole):
    train(tmp_path)
    cases.unfinish(tmp_path)
    lines = train(tmp_path, resume=True)
    assert lines[1:] == [f"run: resuming from step {LAST}"]
    assert (cases.folder_of(tmp_path) / "summary.json").exists()
    cases.assert_same_run(tmp_path, whole)


def test_a_longer_run_equals_one_that_was_long_from_the_start(tmp_path, whole):
    train(tmp_path, cases.spec(run_config=RUN.replace(total_steps=14)))
    timing = cases.folder_of(tmp_path) / "timing.csv"
    *earlier, last = files.read_rows(timing)
    files.write_rows(timing, [*earlier, last | {"wall_time_s": 1000.0}])
    lines = train(tmp_path, resume=True)
    assert resumed_steps(lines) == [14]
    cases.assert_same_run(tmp_path, whole)
    # The clock continues too.
    seconds = [row["wall_time_s"] for row in files.read_rows(timing)]
    assert all(1000 < later < 1100 for later in seconds[3:])


def test_a_run_that_an_earlier_version_began_resumes_without_memory(tmp_path, whole):
    train(tmp_path, cases.spec(run_config=RUN.replace(total_steps=14)))
    timing = cases.folder_of(tmp_path) / "timing.csv"
    names = ("seed", "env_steps", "wall_time_s")
    old = [{name: row[name] for name in names} for row in files.read_rows(timing)]
    files.write_rows(timing, old)
    train(tmp_path, resume=True)
    cases.assert_same_run(tmp_path, whole)
    assert {tuple(row) for row in files.read_rows(timing)} == {names}


@pytest.mark.parametrize(
    ("every", "saved_steps"), [(0, [20]), (2, [8, 14, 20]), (3, [8, 17, 20])]
)
def test_checkpoint_every_sets_the_epochs_between_checkpoints(
    tmp_path, whole, monkeypatch, every, saved_steps
):
    saved, save = [], checkpoint.save

    def spy(piece, step):
        saved.append(step)
        save(piece, step)

    monkeypatch.setattr(checkpoint, "save", spy)
    train(tmp_path, checkpoint_every=every)
    assert saved == saved_steps
    cases.assert_same_run(tmp_path, whole)


def damage(root, step):
    """Flips a bit in the arrays of a checkpoint."""
    folder = cases.folder_of(root) / f"checkpoints/{step:09d}"
    (path,) = folder.glob("seeds-*/arrays.npz")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(tmp_path, whole):
    train(tmp_path)
    cases.unfinish(tmp_path)
    damage(tmp_path, LAST)
    with pytest.raises(checkpoint.CheckpointError, match="--strict"):
        train(tmp_path, resume=True, strict=True)
    lines = train(tmp_path, resume=True)
    assert any("arrays.npz: damaged" in line for line in lines)
    assert resumed_steps(lines) == [17]
    cases.assert_same_run(tmp_path, whole)


def test_a_run_whose_checkpoints_are_all_damaged_starts_again(tmp_path, whole):
    train(tmp_path)
    cases.unfinish(tmp_path)
    folder = cases.folder_of(tmp_path)
    for step in checkpoint.steps(folder):
        damage(tmp_path, step)
    lines = train(tmp_path, resume=True, killed_at=3)
    assert sum("arrays.npz: damaged" in line for line in lines) == 2
    # The damaged ones are of later steps, but don't make the new ones look old.
    assert checkpoint.steps(folder) == STEPS[:2]
    assert resumed_steps(train(tmp_path, resume=True)) == STEPS[1:2]
    cases.assert_same_run(tmp_path, whole)


# Chunks, and runs that share a program.


@pytest.fixture(scope="module")
def chunked(tmp_path_factory, programs_once):
    """Four seeds in chunks of two."""
    root = tmp_path_factory.mktemp("chunked")
    train(root, cases.spec(run_config=MORE_SEEDS), seed_chunk=2)
    return root


def test_a_chunk_equals_a_run_of_its_seeds(tmp_path, whole, chunked):
    train(tmp_path, cases.spec(run_config=RUN.replace(first_seed=2)))
    assert cases.table(chunked) == cases.table(whole) + cases.table(tmp_path)
    for root, seeds in ((whole, range(2)), (tmp_path, range(2, 4))):
        cases.assert_same_states(
            cases.last_states(chunked, seeds=seeds),
            cases.last_states(root, seeds=seeds),
        )
    times = files.read_rows(cases.folder_of(chunked) / "timing.csv")
    assert [row["seed"] for row in times] == [0] * len(STEPS) + [2] * len(STEPS)


def test_a_run_killed_in_its_second_chunk_resumes_there(tmp_path, chunked):
    four = cases.spec(run_config=MORE_SEEDS)
    train(tmp_path, four, seed_chunk=2, killed_at=len(STEPS) + 3)
    lines = train(tmp_path, four, seed_chunk=2, resume=True)
    assert resumed_steps(lines) == [20, 11]
    cases.assert_same_run(tmp_path, chunked)


@pytest.mark.slow
def test_a_run_resumes_in_other_chunks(tmp_path, whole):
    train(tmp_path, killed_at=4)
    lines = train(tmp_path, seed_chunk=1, resume=True)
    assert resumed_steps(lines) == [14, 14]
    cases.assert_close(cases.table(tmp_path), cases.table(whole))
    # What both chunks shared is removed when the second one is done with it.
    assert checkpoint.steps(cases.folder_of(tmp_path)) == STEPS[-2:]


def test_runs_that_share_a_program_equal_each_alone(tmp_path, whole):
    other = CONFIG.replace(sac=CONFIG.sac.replace(actor_learning_rate=1e-1))
    train(tmp_path / "alone", cases.spec(config=other))
    one_seed = RUN.replace(num_seeds=1)
    specs = [
        cases.spec("default", CONFIG, one_seed),
        cases.spec("other", other, one_seed),
    ]
    together = tmp_path / "together"
    lines = train(together, *specs, seed_chunk=2, killed_at=2 * 2 + 1)
    assert lines[0] == "default, other: compiling and warming up 2 seeds"
    train(together, *specs, seed_chunk=2, resume=True)
    for name, root in (("default", whole), ("other", tmp_path / "alone")):
        actual, expected = cases.table(together, name), cases.table(root)
        assert actual == expected[: len(STEPS)]
    rates = [cases.table(r)[-1]["sac/actor_loss"] for r in (whole, tmp_path / "alone")]
    assert rates[0] != pytest.approx(rates[1], rel=0.01)


@pytest.mark.parametrize(
    ("backend", "seed_chunk", "num_seeds", "size"),
    [
        ("cpu", 0, 4, 4),
        ("cpu", 0, 3, 6),
        ("cpu", 0, 1, 2),
        ("cpu", 5, 4, 5),
        ("gpu", 0, 4, 0),
    ],
)
def test_on_a_cpu_runs_train_one_after_the_other_and_keep_all_devices_busy(
    monkeypatch, backend, seed_chunk, num_seeds, size
):
    options = session.SessionOptions(seed_chunk=seed_chunk)
    monkeypatch.setattr(session.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(session.jax, "device_count", lambda: 2)
    assert session._chunk_size(RUN.replace(num_seeds=num_seeds), options) == size


def test_a_failed_group_does_not_stop_the_next_one_if_training_keeps_going(
    tmp_path, monkeypatch, capsys
):
    other = cases.spec("other", CONFIG.replace(batch_size=5))
    trained = []

    def fail_or_train(queue, *_, **__):
        (spec,) = queue.group
        if spec.name == "run":
            raise session.RunError("out of memory", 6)
        trained.append(spec.name)

    monkeypatch.setattr(session, "_train_group", fail_or_train)
    specs, options = [cases.spec(), other], session.SessionOptions()
    root, study = tmp_path, cases.STUDY
    with pytest.raises(session.RunError):
        session.train_runs(specs, root, study, options=options)
    assert trained == []
    statuses = session.train_runs(specs, root, study, options=options, keep_going=True)
    assert (statuses, trained) == ([6], ["other"])
    assert capsys.readouterr().err == "run: out of memory\n"


def test_groups_share_settings_and_the_step_they_resume_from(tmp_path):
    rate = CONFIG.replace(sac=CONFIG.sac.replace(actor_learning_rate=1e-1))
    specs = [
        cases.spec("one"),
        cases.spec("larger", CONFIG.replace(batch_size=5)),
        cases.spec("rate", rate),
        cases.spec("saved", rate),
    ]
    piece = checkpoint.Piece(tmp_path / "saved", range(2), {"x": np.zeros(2)})
    checkpoint.save(piece, 8)

    def names(groups):
        return [[spec.name for spec in group] for group in groups]

    assert names(grid.groups(specs, tmp_path, resume=True)) == [
        ["one", "rate"],
        ["larger"],
        ["saved"],
    ]
    assert names(grid.groups(specs, tmp_path, resume=False)) == [
        ["one", "rate", "saved"],
        ["larger"],
    ]
    assert names([grid.by_program(specs)]) == [["one", "rate", "saved", "larger"]]


# Seeds.


def test_a_seed_does_not_depend_on_its_neighbours(tmp_path, whole):
    train(tmp_path, cases.spec(run_config=RUN.replace(first_seed=1)))
    cases.assert_same_states(
        cases.last_states(tmp_path, seeds=[1]), cases.last_states(whole, seeds=[1])
    )
    assert cases.table(tmp_path)[: len(STEPS)] == cases.table(whole)[len(STEPS) :]


@pytest.mark.slow
def test_one_after_the_other_each_seed_has_its_bits_in_any_company(tmp_path, whole):
    run = RUN.replace(total_steps=14, num_seeds=4)
    train(tmp_path / "four", cases.spec(run_config=run), mode="serial")
    actual = cases.table(tmp_path / "four")
    last = cases.last_states(tmp_path / "four", seeds=range(4), step=14)
    for count, first in ((2, 0), (2, 2), (1, 0)):
        root, own = tmp_path / f"{count}-{first}", range(first, first + count)
        alone = run.replace(num_seeds=count, first_seed=first)
        train(root, cases.spec(run_config=alone), mode="serial")
        assert cases.table(root) == actual[3 * first :][: 3 * count]
        cases.assert_same_states(
            cases.last_states(root, seeds=own, step=14),
            {name: array[list(own)] for name, array in last.items()},
        )
    rows = [row for row in cases.table(whole) if row["env_steps"] <= 14]
    cases.assert_close(actual[: 3 * SEEDS], rows)


def test_nothing_is_computed_after_all_seeds_have_diverged(tmp_path, monkeypatch):
    strict = cases.spec(config=CONFIG.replace(divergence_slack=1e-9))
    programs, calls = cases.programs(), []

    def improve_policy(*args):
        if not isinstance(args[0].alive, jax.core.Tracer):
            calls.append(1)
        return programs.improve_policy(*args)

    improve_policy.lower = programs.improve_policy.lower
    counted = programs._replace(improve_policy=improve_policy)
    monkeypatch.setattr(vectorized, "make_programs", lambda *_, **__: counted)
    lines = train(tmp_path / "whole", strict)
    assert len(calls) == 1
    assert f"{SEEDS} diverged" in lines[-1]
    table = cases.table(tmp_path / "whole")
    assert [row["env_steps"] for row in table] == STEPS * SEEDS
    assert [row["diverged_at"] for row in table] == [None, *[STEPS[1]] * 4] * SEEDS
    assert [np.isnan(row["return"]) for row in table] == [False, *[True] * 4] * SEEDS
    assert checkpoint.steps(cases.folder_of(tmp_path / "whole")) == STEPS[-2:]
    train(tmp_path / "killed", strict, killed_at=4)
    assert len(calls) == 2
    train(tmp_path / "killed", strict, resume=True)
    assert len(calls) == 2
    cases.assert_same_run(tmp_path / "killed", tmp_path / "whole")


# Tables.


def test_a_new_metric_of_an_epoch_reaches_the_tables(tmp_path, monkeypatch):
    programs = cases.programs()

    def improve_policy(*args):
        state, metrics = programs.improve_policy(*args)
        ones = jnp.ones(len(args[2].seeds))
        vector = jnp.stack([ones, 2 * ones], axis=1)
        made_up = {"made_up": 3 * ones, "sac/pair": vector, "model/made_up": vector}
        return state, metrics | made_up

    improve_policy.lower = programs.improve_policy.lower
    extended = programs._replace(improve_policy=improve_policy)
    monkeypatch.setattr(vectorized, "make_programs", lambda *_, **__: extended)
    train(tmp_path)
    table = cases.table(tmp_path)
    columns = ("made_up", "sac/pair_0", "sac/pair_1")
    assert [table[0][name] for name in columns] == [None] * 3
    assert [table[-1][name] for name in columns] == [3.0, 1.0, 2.0]
    model = files.read_rows(cases.folder_of(tmp_path) / "model.csv")
    assert list(model[0])[4:] == ["made_up_0", "made_up_1"]
    assert [row["env_steps"] for row in model] == [s for s in STEPS[1:] for _ in "01"]


def test_train_runs_writes_the_rows_and_lines_of_each_iteration(tmp_path, monkeypatch):
    states = {"x": jnp.arange(2.0)}
    iterations = rows_cases.ITERATIONS
    monkeypatch.setattr(vectorized, "make_programs", lambda *_, **__: None)
    monkeypatch.setattr(
        loop, "train_lanes", lambda *_, **__: ((states, p) for p in iterations)
    )
    run_config = loop.RunConfig(num_seeds=2, first_seed=7, total_steps=LAST)
    lines = train(tmp_path, cases.spec(run_config=run_config), checkpoint_every=0)
    evaluated = [each for each in iterations if each.returns.size]
    assert lines[1:] == [rows.progress_line("run", p, last=LAST) for p in evaluated]
    constant = {"env": "session_cases:Line", "loss": "none"}
    for name, rows_of in (("metrics", rows.metric_rows), ("model", rows.model_rows)):
        for progress in iterations:
            expected = rows_of(progress, [7, 8], constant)
            files.append_rows(tmp_path / f"{name}.csv", expected)
        actual = (cases.folder_of(tmp_path) / f"{name}.csv").read_text()
        assert actual == (tmp_path / f"{name}.csv").read_text()
    timing = (cases.folder_of(tmp_path) / "timing.csv").read_text()
    assert timing.splitlines() == [
        "seed,env_steps,wall_time_s,memory_mb,device_memory_mb",
        *("7,8,4.0,250,", "7,11,9.96,250,", "7,14,12.0,250,"),
        *("7,17,15.0,250,", "7,20,16.0,250,"),
    ]
