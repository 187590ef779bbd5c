"""Wrong input: refused in one line, before anything is written or compiled."""

import re

import commands
import jax
import jax.numpy as jnp
import pytest

from vagram_jax.storage import files, results

CONFIG = """
def get_config():
    return {
        "env": "pendulum",
        "num_seeds": 2,
        "total_steps": 30,
        "warmup_steps": 10,
        "steps_per_epoch": 5,
        "replay_capacity": 50,
        "dynamics": {"num_members": 4, "num_elites": 2},
    }
"""
COMPILED = []


def _listen(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Runs a command that must fail; returns its status and its one line.

    Checks that it wrote no file and compiled nothing.
    """
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG)
    # Otherwise the first command would split the CPU for all later tests.
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(jax.local_device_count()))

    def run(*args, command="train"):
        before = contents(tmp_path), len(COMPILED)
        flags = f"--config={config}", f"--results={tmp_path / 'results'}"
        status, out, err = commands.call(command, *flags, *args)
        assert out == ""
        assert err.count("\n") == 1
        assert (contents(tmp_path), len(COMPILED)) == before
        return status, err.removesuffix("\n")

    return run


def contents(folder):
    """Every file with its bytes, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def test_the_listener_notices_a_compilation():
    before = len(COMPILED)
    jax.block_until_ready(jax.jit(lambda x: x * 3.25 - 1.5)(jnp.arange(7.0)))
    assert len(COMPILED) > before


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        (
            "--config.sac.discont=0.9",
            "unknown key sac.discont=0.9; did you mean sac.dis",
        ),
        ("--config.num_sedes=4", "unknown key num_sedes=4; did you mean num_seeds?"),
        ("--config.total_step=30", "did you mean total_steps?"),
        ("--config.hidden=8", "did you mean "),
        ("--sead=3", "--sead=3: unknown flag; "),
        ("--num_seeds=3", "unknown flag; did you mean --config.num_seeds?"),
        ("--resul=x", "--resul=x: unknown flag; did you mean --results?"),
        ("8", "8: not a flag; flags are written --name=value"),
    ],
)
def test_a_misspelt_flag_or_key_gets_the_nearest_name(refused, arg, message):
    status, line = refused(arg)
    assert status == 2
    assert message in line


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("--config.num_seeds=0", "num_seeds=0; accepted: at least 1"),
        ("--config.num_seeds=-1", "num_seeds=-1; accepted: at least 1"),
        ("--config.num_seeds=2.5", "num_seeds=2.5; a whole number is accepted"),
        ("--config.first_seed=-1", "first_seed=-1; accepted: at least 0"),
        ("--config.batch_size=-256", "batch_size=-256; accepted: at least 1"),
        ("--config.replay_capacity=0", "replay_capacity=0; accepted: at least 2"),
        (
            "--config.dynamics.hidden=16,-16",
            "dynamics.hidden=-16; accepted: at least 1",
        ),
        ("--config.sac.hidden=0", "sac.hidden=0; accepted: at least 1"),
        (
            "--config.dynamics.num_members=0",
            "dynamics.num_members=0; accepted: at least 1",
        ),
        ("--config.eval_episodes=0", "eval_episodes=0; accepted: at least 1"),
        ("--config.eval_every=0", "eval_every=0; accepted: at least 1"),
        ("--config.distractors=-1", "distractors=-1; accepted: at least 0"),
        (
            "--config.sac.discount=1.1",
            "sac.discount=1.1; accepted: at least 0.0 and at",
        ),
        ("--config.sac.target_rate=0", "sac.target_rate=0.0; accepted: above 0.0 and"),
        ("--config.fit.learning_rate=nan", "fit.learning_rate=nan; a finite number"),
        ("--config.fit.holdout=1", "fit.holdout=1.0; accepted: at least 0.0 and at"),
        ("--config.real_fraction=1.5", "real_fraction=1.5; accepted: at least 0"),
        ("--config.real_fraction=-0.1", "real_fraction=-0.1; accepted: at least 0"),
        ("--config.real_fraction=0.1,0.9", "real_fraction=(0.1, 0.9); one number, or"),
        ("--config.real_fraction=half", "real_fraction='half'; a finite number is"),
        ("--config.imagine.horizon=0", "imagine.horizon=0; accepted: at least 1"),
        ("--config.imagine.horizon=1,9,6,5", "last environment step of the change, in"),
        ("--config.divergence_slack=0", "divergence_slack=0.0; accepted: above 0.0"),
    ],
)
def test_a_value_out_of_range_gets_the_range(refused, arg, message):
    status, line = refused(arg)
    assert status == 2
    assert message in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--config.dynamics.num_elites=5"],
            "num_elites=5; at most dynamics.num_members=4",
        ),
        (["--config.warmup_steps=60"], "replay_capacity=50; at least warmup_steps=60"),
        (
            ["--config.total_steps=31"],
            "total_steps=31; warmup_steps=10 plus a whole num",
        ),
        (["--config.total_steps=10"], "of steps_per_epoch=5, such as 15"),
        (
            ["--config.loss=mle", "--config.dynamics.head=deterministic"],
            "head='deterministic'; loss='mle' needs a variance",
        ),
    ],
)
def test_two_contradicting_values_are_both_named(refused, args, message):
    status, line = refused(*args)
    assert status == 2
    assert message in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seed_chunk=-1"], "--seed_chunk=-1; at least 0"),
        (["--checkpoint_every=-1"], "--checkpoint_every=-1; at least 0"),
        (["--cpu_devices=0"], "--cpu_devices=0; at least 1"),
        (["--cpu_devices=2.5"], "--cpu_devices=2.5"),
        (
            ["--seed_mode=pmap"],
            "--seed_mode=pmap: value should be one of <vmap|serial>",
        ),
        (
            ["--seed_chunks=2"],
            "--seed_chunks=2: unknown flag; did you mean --seed_chunk",
        ),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_flags_of_a_session_are_checked(refused, command, args, message):
    status, line = refused(*args, command=command)
    assert status == 2
    assert message in line


def test_cpu_devices_are_refused_after_jax_has_started(refused):
    status, line = refused("--cpu_devices=3")
    assert status == 2
    assert line.startswith("--cpu_devices=3: JAX is already in use; ")


def test_a_cluster_without_a_description_gets_the_flags_for_it(refused):
    status, line = refused("--distributed")
    assert status == 2
    assert line.startswith("--distributed: ")
    assert line.endswith("or give --coordinator, --num_processes and --process_id")


def test_an_unknown_loss_gets_the_known_losses(refused):
    status, line = refused("--config.loss=vagrm")
    assert status == 2
    assert "loss='vagrm'; known: calibrated_vaml, constant_weights, mle, mse, " in line
    assert line.endswith("did you mean vagram?")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("vagram,vagrm", "did you mean vagram?"),
        ("mle,mle", "--losses=mle,mle: each loss once, and at least one"),
        ("none,sac", "runs none and sac: have the same settings; leave one of"),
        ("", "--losses=: each loss once, and at least one"),
    ],
)
def test_a_bad_list_of_losses_is_refused_before_training(refused, losses, message):
    status, line = refused(f"--losses={losses}", command="compare")
    assert status == 2
    assert message in line


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("pendulm", "env='pendulm'; known: ant, cartpole_swingup, "),
        ("pendulm", "did you mean pendulum?"),
        ("Pendulum-v1", "brax:NAME, gymnasium:NAME, playground:NAME, or path.module:"),
        ("no_such_module:Env", "No module named 'no_such_module'"),
        ("probe_envs:Conter", "probe_envs has no Conter; did you mean Counter?"),
        ("probe_envs:Counter", "episode_length=None; a whole number of at least 1"),
    ],
)
def test_an_unknown_environment_gets_the_reason(refused, env, message):
    status, line = refused(f"--config.env={env}")
    assert status == 2
    assert message in line


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("probe_envs:Costly", "making it raised FileNotFoundError"),
        ("probe_envs:Costly", "probe_envs.py:"),
        ("probe_envs:Exits", "step fails when JAX traces it: SystemExit: 0 ("),
        ("probe_envs:TupleState", "reset returned tuple without obs"),
        ("probe_envs:Gymnasium", "reset takes (*, seed=None, options=None)"),
        (
            "probe_envs:PythonIf",
            "step fails when JAX traces it: ConcretizationTypeError: ",
        ),
        ("probe_envs:PythonIf", "probe_envs.py:"),
        ("probe_envs:HostNoise", "draws from a global generator"),
    ],
)
def test_an_unusable_environment_gets_the_reason(refused, env, message):
    status, line = refused(f"--config.env={env}")
    assert status == 3
    assert message in line


def test_an_environment_without_termination_gets_the_alternatives(refused):
    status, line = refused(
        "--config.env=probe_envs:Salary", "--config.episode_length=5"
    )
    assert status == 2
    assert line.endswith("to learned, or to none if no episode terminates")


@pytest.mark.parametrize("inner", ["", "/deeper"])
def test_a_results_folder_inside_a_file_is_refused(refused, tmp_path, inner):
    (tmp_path / "file").write_text("mine")
    status, line = refused(f"--results={tmp_path / 'file'}{inner}")
    assert status == 5
    assert str(tmp_path / "file") in line


def trained_run(root, name, settings):
    """The folder of a run with a record and a row."""
    run = results.create_run(root / "results", "pendulum", name, settings)
    files.append_rows(run / "timing.csv", [{"seed": 0, "env_steps": 8}])
    return run


@pytest.mark.parametrize(("command", "loss"), [("train", "vagram"), ("compare", "mle")])
@pytest.mark.parametrize("state", ["a finished", "an unfinished"])
def test_an_existing_run_is_refused(refused, tmp_path, command, loss, state):
    # A comparison also trains other losses: one existing run is enough.
    run = trained_run(tmp_path, loss, {})
    if state == "a finished":
        files.write_json(run / "summary.json", {})
    status, line = refused(command=command)
    assert status == 5
    assert f"{run} holds {state} run; --resume " in line
    assert "--overwrite replaces it" in line


def test_a_run_with_other_settings_is_not_resumed(refused, tmp_path):
    trained_run(tmp_path, "vagram", {"old": 1})
    status, line = refused("--resume")
    assert status == 2
    assert "can't be resumed with other settings: old was 1, is None; " in line
    assert re.search(r"; and \d+ more; only total_steps may grow$", line)


@pytest.mark.parametrize("is_finished", [False, True])
@pytest.mark.parametrize("record", ["[]", "{", '{"config": 1}'])
def test_a_run_with_a_damaged_record_is_not_resumed(
    refused, tmp_path, record, is_finished
):
    run = trained_run(tmp_path, "vagram", {})
    (run / "config.json").write_text(record)
    if is_finished:
        files.write_json(run / "summary.json", {})
    status, line = refused("--resume")
    assert status == 5
    assert f"{run / 'config.json'}: " in line


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "a/b", "."])
def test_a_study_name_that_leaves_the_results_folder_is_refused(refused, name):
    status, line = refused(f"--study={name}")
    assert status in (2, 5)
    assert "study=" in line
