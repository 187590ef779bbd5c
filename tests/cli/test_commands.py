"""The commands train and compare from end to end, on a task of a user."""

import math
import shutil

import command_cases
import pytest
from absl.testing import flagsaver
from command_cases import call
from session_cases import programs_once

from vagram_jax.cli import compare, flags, train
from vagram_jax.run import devices, loop, memory, session
from vagram_jax.storage import checkpoint, files, lock, results

__all__ = ["call", "programs_once"]

RUN_FILES = {"config.json", "metrics.csv", "model.csv", "summary.json", "timing.csv"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory, call):
    """The folder of a comparison, and the outcome of the command."""
    root = tmp_path_factory.mktemp("compared")
    outcome = call(compare, "--losses=vagram,sac", f"--results={root}")
    return root / "Spring", outcome


def contents(folder):
    """Every file with its bytes and its time."""
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_tables(folder, expected, names=("metrics.csv", "model.csv")):
    for name in names:
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


def test_compare_leaves_the_files_of_a_study(compared):
    folder, (status, _, err) = compared
    assert (status, err) == (0, "")
    names = {name for name in contents(folder) if "/checkpoints/" not in name}
    runs = {f"vagram/{name}" for name in RUN_FILES}
    # Plain SAC fits no model.
    runs |= {f"sac/{name}" for name in RUN_FILES - {"model.csv"}}
    assert runs | {"report.html", "summary.json", "learning_curves.png"} <= names
    others = names - runs - {"report.html", "summary.json"}
    assert all(name.endswith(".png") for name in others)


def test_compare_prints_each_step_and_a_table(compared):
    folder, (_, out, _) = compared
    lines = out.splitlines()
    for number, name in enumerate(("vagram", "sac"), start=1):
        start = f"{name}: compiling and warming up 2 seeds, run {number} of 2"
        assert start in lines
        steps = [line for line in lines if line.startswith(f"{name}: step ")]
        starts = [line.split(",")[0] for line in steps]
        assert starts == [f"{name}: step {n} of 14" for n in (8, 11, 14)]
    table = lines[lines.index("") + 1 :]
    assert [line.split()[0] for line in table[:3]] == ["run", "vagram", "sac"]
    assert lines[-1] == f"report: {folder / 'report.html'}"


def test_compare_records_configs_that_differ_only_in_the_loss(compared):
    folder, _ = compared
    records = [
        files.read_json(folder / name / "config.json") for name in ("vagram", "sac")
    ]
    assert [record["labels"] for record in records] == [
        {"loss": "vagram"},
        {"loss": "sac"},
    ]
    for record in records:
        assert record["device"] == devices.describe()
        assert record["layout"] == {"seed_mode": "vmap", "seed_chunk": 0}
    vagram, sac = (record["config"] for record in records)
    assert (vagram["env"], vagram["num_seeds"]) == ("spring_of_a_user:Spring", 2)
    assert (vagram["loss"], sac["loss"]) == ("vagram", "none")
    assert vagram["dynamics"]["head"] == "deterministic"
    different = {key for key in vagram if vagram[key] != sac[key]}
    assert different == {"loss", "real_fraction", "dynamics"}
    assert vagram["dynamics"] | {"head": "auto"} == sac["dynamics"]


def test_model_csv_has_all_metrics_of_a_fit(compared):
    rows = files.read_rows(compared[0] / "vagram" / "model.csv")
    assert list(rows[0]) == [
        *("env", "loss", "seed", "env_steps", "horizon"),
        *("new_error_dim_0", "new_error_dim_1", "new_false_alarms", "new_missed"),
        *("new_reward", "new_value", "terminated", "valid"),
        *("attention_dim_0", "attention_dim_1", "epochs", "error_dim_0", "error_dim_1"),
        *("finite", "holdout_loss_0", "improved", "steps", "train_loss_0"),
        "weightless",
    ]
    assert [(row["seed"], row["env_steps"]) for row in rows] == [
        (seed, step) for step in (11, 14) for seed in range(2)
    ]


def test_compare_writes_a_summary_of_each_finished_run(compared):
    folder, _ = compared
    for name in ("vagram", "sac"):
        summary = files.read_json(folder / name / "summary.json")
        rows = files.read_rows(folder / name / "metrics.csv")
        last = [row["return"] for row in rows if row["env_steps"] == 14]
        times = files.read_rows(folder / name / "timing.csv")
        assert summary["seconds"] == times[-1]["wall_time_s"] > 0
        assert (summary["seeds"], summary["diverged"]) == (2, 0)
        assert summary["diverged_at"] == {}
        # Of two numbers the interquartile mean is the mean.
        assert summary["iqm"] == pytest.approx(sum(last) / 2)


def test_compare_starts_all_losses_from_the_same_seeds(compared):
    folder, _ = compared
    first = [
        [row["return"] for row in files.read_rows(path) if row["env_steps"] == 8]
        for path in (folder / "vagram/metrics.csv", folder / "sac/metrics.csv")
    ]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    "command", [(compare, "--losses=mse,sac"), (train, "--config.loss=vagram")]
)
def test_a_command_refuses_a_folder_that_holds_a_run(call, compared, command):
    folder, _ = compared
    before = contents(folder)
    status, out, err = call(*command, f"--results={folder.parent}")
    assert (status, out) == (5, "")
    assert "holds a finished run" in err
    assert all(f"--{way}" in err for way in ("resume", "overwrite", "study=NAME"))
    assert err.count("\n") == 1
    assert contents(folder) == before


def test_train_replaces_a_run_with_overwrite(call, tmp_path, compared):
    args = [f"--results={tmp_path}", "--study=mine", "--config.loss=vagram"]
    shutil.copytree(compared[0] / "vagram", tmp_path / "mine" / "vagram")
    run = tmp_path / "mine" / "vagram"
    status, out, err = call(train, *args, "--overwrite", "--config.total_steps=11")
    assert (status, err) == (0, "")
    assert "step 11 of 11" in out
    after = contents(run)
    assert {name for name in after if "/" not in name} == RUN_FILES
    assert checkpoint.steps(run) == [8, 11]
    # Both runs have the same numbers as far as the shorter one goes.
    for name, rows in (("metrics.csv", 4), ("model.csv", 2)):
        expected = (compared[0] / "vagram" / name).read_bytes().splitlines(True)
        assert (run / name).read_bytes() == b"".join(expected[: 1 + rows])


@pytest.mark.parametrize("loss", ["none", "sac"])
def test_train_calls_plain_sac_by_its_name(call, tmp_path, compared, loss):
    args = [f"--results={tmp_path}", f"--config.loss={loss}", "--study=mine"]
    assert call(train, *args)[0] == 0
    assert_same_tables(tmp_path / "mine" / "sac", compared[0] / "sac", ["metrics.csv"])


def test_resume_leaves_a_finished_study_unchanged(call, compared):
    folder, (_, first, _) = compared
    args = ["--losses=vagram,sac", f"--results={folder.parent}", "--resume"]
    runs = [folder / "vagram", folder / "sac"]
    before = [contents(run) for run in runs]
    status, out, err = call(compare, *args)
    assert (status, err) == (0, "")
    assert [contents(run) for run in runs] == before
    lines, table = out.split("\n\n")
    assert lines.splitlines() == ["vagram: finished already", "sac: finished already"]
    assert table == first.split("\n\n")[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sac.discount=0.5"], "sac.discount was 0.99, is 0.5; only"),
        (["num_seeds=3"], "num_seeds was 2, is 3; only total_steps may grow"),
        (["total_steps=11"], "total_steps was 14, is 11; only total_steps may grow"),
        (
            ["total_steps=17", "batch_size=5", "fit.batch_size=5"],
            "settings: fit.batch_size was 4, is 5; batch_size was 4, is 5; only",
        ),
    ],
)
def test_resume_with_other_settings_is_refused_and_names_them(
    call, compared, changes, message
):
    folder, _ = compared
    before = contents(folder)
    overrides = [f"--config.{change}" for change in changes]
    status, out, err = call(train, f"--results={folder.parent}", "--resume", *overrides)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("args", "normalized"),
    [
        ([], {"vagram": False, "mle": False, "mse_normalized": False, "sac": False}),
        (
            ["--config.dynamics.normalize_state=true"],
            {"vagram": True, "mle": True, "mle_raw": False, "mse_normalized": True}
            | {"sac": True},
        ),
        (
            ["--config.dynamics.normalize_state=true", "--losses=mse,mse_raw"],
            {"mse": True, "mse_raw": False},
        ),
    ],
)
def test_raw_baselines_have_targets_that_are_not_normalized(
    call, tmp_path, monkeypatch, args, normalized
):
    specs = []
    keep = lambda found, *_, **__: specs.extend(found)  # noqa: E731
    monkeypatch.setattr(compare.session, "train_runs", keep)
    monkeypatch.setattr(compare.train, "show", lambda *_: 0)
    assert call(compare, f"--results={tmp_path}", *args)[0] == 0
    models = {spec.name: spec.algorithm.dynamics for spec in specs}
    assert {k: bool(v.normalize_state) for k, v in models.items()} == normalized
    assert not any(bool(model.normalize_reward) for model in models.values())
    losses = {spec.labels["loss"]: spec.algorithm.loss for spec in specs}
    assert losses.get("mle_raw", "mle") == "mle"


def test_a_longer_run_equals_one_that_was_long_from_the_start(call, tmp_path, compared):
    args = [f"--results={tmp_path}", "--study=mine", "--resume"]
    # --resume trains a run that doesn't exist yet.
    assert call(train, *args, "--config.total_steps=11")[0] == 0
    run = tmp_path / "mine" / "vagram"
    half = files.read_rows(run / "timing.csv")
    status, out, err = call(train, *args)
    assert (status, err) == (0, "")
    assert "vagram: resuming from step 11" in out
    assert_same_tables(run, compared[0] / "vagram")
    arrays, expected = (
        checkpoint.load(where, 14, range(2)) for where in (run, compared[0] / "vagram")
    )
    assert arrays.keys() == expected.keys()
    assert all((arrays[name] == expected[name]).all() for name in arrays)
    record = files.read_json(run / "config.json")
    assert record["config"]["total_steps"] == 14
    (note,) = record["resumed"]
    assert set(note["changed"]) <= {"revision"}
    times = files.read_rows(run / "timing.csv")
    assert [row["env_steps"] for row in times] == [8, 11, 14]
    assert times[:2] == half
    assert times[2]["wall_time_s"] > times[1]["wall_time_s"]


@pytest.mark.parametrize("change", ["--overwrite", "--resume"])
def test_a_run_that_another_process_owns_is_left_unchanged(
    call, compared, tmp_path, change
):
    shutil.copytree(compared[0] / "vagram", tmp_path / "mine" / "vagram")
    run = tmp_path / "mine" / "vagram"
    args = [f"--results={tmp_path}", "--study=mine", "--config.total_steps=17"]
    with lock.hold(run):
        before = contents(run)
        status, _, err = call(train, *args, change)
        assert status == 5
        assert "lock.json: held by pid" in err
        assert contents(run) == before


@pytest.mark.parametrize("every", [1, 2])
def test_status_4_means_that_all_seeds_diverged(call, tmp_path, every):
    args = [f"--results={tmp_path}", "--config.divergence_slack=1e-9"]
    args += [f"--config.eval_every={every}"]
    status, out, err = call(train, *args)
    assert (status, err) == (flags.STATUS_DIVERGED, "") == (4, "")
    assert (every == 2) or "vagram: step 11 of 14, 2 diverged" in out
    assert "2 of 2 seeds of VaGraM diverged" in out
    summary = files.read_json(tmp_path / "Spring" / "vagram" / "summary.json")
    assert (summary["seeds"], summary["diverged"]) == (2, 2)
    assert summary["diverged_at"] == {"seed 0": 11, "seed 1": 11}
    # The same command again has the same status and trains nothing.
    status, out, _ = call(train, *args, "--resume")
    assert (status, out.splitlines()[0]) == (4, "vagram: finished already")


@pytest.mark.parametrize(
    ("diverged", "status"),
    [(["a", "b"], 4), (["a"], 0), (["b"], 0), ([], 0)],
)
def test_show_returns_whether_any_seed_of_any_run_is_alive(tmp_path, diverged, status):
    for name in ("a", "b"):
        folder = results.create_run(tmp_path, "study", name, {})
        at = {0: 20, 1: 30 if name in diverged else None}
        rows = [
            {"env": "toy", "loss": "mse", "seed": seed, "env_steps": step}
            | {"return": math.nan if at[seed] and step >= at[seed] else 1.0}
            | {"diverged_at": at[seed] if at[seed] and step >= at[seed] else None}
            for step in (10, 30)
            for seed in (0, 1)
        ]
        files.append_rows(folder / "metrics.csv", rows)
    assert train.show(tmp_path / "study", ["a", "b"]) == status


def test_status_6_means_a_lack_of_memory_and_the_run_can_be_resumed(
    call, tmp_path, compared, monkeypatch
):
    args, run = [f"--results={tmp_path}"], tmp_path / "Spring" / "vagram"
    with monkeypatch.context() as patch:
        patch.setattr(devices, "memory_limit", lambda: 1.0)
        patch.setattr(
            memory, "check_states", lambda *_, **__: None
        )  # the states alone fit
        status, out, err = call(train, *args)
    assert status == flags.STATUS_MEMORY == 6
    first, second = out.splitlines()
    assert first == "vagram: compiling and warming up 2 seeds"
    assert second.startswith("vagram: step 8 of ")
    assert err.startswith("2 seeds need 0.0")
    assert err.endswith("0 seeds fit; make buffers or networks smaller\n")
    assert not (run / "metrics.csv").exists()
    assert files.read_json(run / "failure.json")["reason"] == err.removesuffix("\n")
    assert call(train, *args, "--resume")[0] == 0
    assert_same_tables(run, compared[0] / "vagram")
    assert {name for name in contents(run) if "/" not in name} == RUN_FILES


def test_session_options_are_set_by_the_flags(call):
    def options(*args):
        with flagsaver.flagsaver():
            tiny = command_cases.folder() / "tiny.py"
            flags.parse(["train", f"--config={tiny}", *args], *loop.CONFIGS)
            return train.session_options(2)

    assert options() == session.SessionOptions()
    assert options("--overwrite").overwrite
    assert options(
        *("--resume", "--strict", "--break_lock", "--checkpoint_every=7"),
        *("--seed_mode=serial", "--seed_chunk=3"),
    ) == session.SessionOptions(
        layout=devices.Layout("serial"),
        seed_chunk=3,
        checkpoint_every=7,
        resume=True,
        strict=True,
        break_lock=True,
    )
