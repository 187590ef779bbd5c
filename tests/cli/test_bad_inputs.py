"""Wrong input: refused in one line, before anything is written or compiled."""

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
        ("--config.num_seeds=-1", "num_seeds=-1; accepted: at least 1"),
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
        ("--config.real_fraction=1.5", "real_fraction=1.5; accepted: at least 0"),
        ("--config.real_fraction=-0.1", "real_fraction=-0.1; accepted: at least 0"),
        ("--config.real_fraction=0.1,0.9", "real_fraction=(0.1, 0.9); one number, or"),
        ("--config.real_fraction=half", "real_fraction='half'; a finite number is"),
        ("--config.imagine.horizon=0", "imagine.horizon=0; accepted: at least 1"),
        ("--config.divergence_slack=0", "divergence_slack=0.0; accepted: above 0.0"),
    ],
)
def test_a_value_out_of_range_gets_the_range(refused, arg, message):
    status, line = refused(arg)
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


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("pendulm", "env='pendulm'; known: ant, cartpole_swingup, "),
        ("pendulm", "did you mean pendulum?"),
        ("Pendulum-v1", "brax:NAME, dmc:NAME, gymnasium:NAME, playground:NAME, or p"),
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
    assert status == 2
    assert "study=" in line
