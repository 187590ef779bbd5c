"""From the command line to configs: what is accepted, and one line for what is not."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_collections
import pytest
from absl.testing import flagsaver
from flax import struct

from vagram_jax import config
from vagram_jax.cli import flags
from vagram_jax.run import devices, session
from vagram_jax.storage import results

SEEDS_FILE = flags.DEFINE_string("seeds_file", None, "A flag of a command's own.")


@struct.dataclass(kw_only=True)
class Agent:
    """A nested config."""

    discount: float = config.leaf(0.99, above=0, high=1)


@struct.dataclass(kw_only=True)
class Train:
    """A config with a field of each kind."""

    loss: str = config.static("vagram", choices=("mle", "vagram"))
    tag: str = config.static("none")
    hidden: tuple[int, ...] = config.static((64, 64), low=1)
    losses: tuple[str, ...] = config.static(("mle",))
    extra: tuple[str, ...] = config.static(())
    normalise: bool = config.static(True)
    agent: Agent = config.nested(Agent)


@struct.dataclass(kw_only=True)
class Study:
    """A second config in the same file."""

    num_seeds: int = config.static(4, low=1)


CONFIG_FILE = """
    import test_flags
    from experiments import flags

    def get_config(variant=""):
        config = flags.defaults(test_flags.Train, test_flags.Study)
        config.agent.discount = 0.98
        if variant == "quick":
            config.num_seeds = 2
        elif variant:
            raise ValueError(f"unknown variant {variant}; known: quick")
        return config
"""


@pytest.fixture(autouse=True)
def restore_flags():
    with flagsaver.flagsaver():
        yield


def write_config(folder, text, name="task.py"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write_config(tmp_path, CONFIG_FILE)


@pytest.fixture
def parse(file):
    return lambda *args: flags.parse(
        ["train", *args], Train, Study, default_config=file
    )


@pytest.fixture
def fails(file, capsys):
    """Runs a command whose `main` does nothing or raises; gives status and error."""

    def run(*args, raises=None):
        def main(train, study):
            if raises:
                raise raises

        with pytest.raises(SystemExit) as caught:
            flags.run(main, Train, Study, default_config=file, argv=["train", *args])
        output = capsys.readouterr()
        assert output.out == ""
        return caught.value.code, output.err.removesuffix("\n")

    return run


def test_parse_takes_the_default_file_when_none_is_named(parse):
    assert parse() == (Train(agent=Agent(discount=0.98)), Study())


def test_parse_passes_the_variant_to_the_config_file(parse, file):
    assert parse(f"--config={file}:quick")[1] == Study(num_seeds=2)
    assert parse("--config", f"{file}:quick")[1] == Study(num_seeds=2)


@pytest.mark.parametrize(
    ("arg", "key", "value"),
    [
        ("--config.loss=mle", "loss", "mle"),
        ("-config.loss=mle", "loss", "mle"),
        ("--config.tag=1e6", "tag", "1e6"),
        ("--config.tag=", "tag", ""),
        ("--config.tag=a=b", "tag", "a=b"),
        ("--config.tag=two\nlines", "tag", "two\nlines"),
        ("--config.hidden=32,32", "hidden", (32, 32)),
        ("--config.hidden=(32, 32)", "hidden", (32, 32)),
        ("--config.hidden=[32]", "hidden", (32,)),
        ("--config.hidden=32", "hidden", (32,)),
        ("--config.hidden=", "hidden", ()),
        ("--config.losses=mle,vagram", "losses", ("mle", "vagram")),
        ("--config.losses=('mle', 'vagram')", "losses", ("mle", "vagram")),
        ("--config.extra=a,b", "extra", ("a", "b")),
        ("--config.normalise=false", "normalise", False),
        ("--config.normalise=True", "normalise", True),
        ("--config.normalise", "normalise", True),
        ("--noconfig.normalise", "normalise", False),
    ],
)
def test_parse_reads_an_override_as_its_field_declares(parse, arg, key, value):
    assert getattr(parse(arg)[0], key) == value


@pytest.mark.parametrize("text", ["8", "8.0", "8e0", "0_8"])
def test_parse_reads_whole_numbers_however_written(parse, text):
    assert parse(f"--config.num_seeds={text}")[1].num_seeds == 8


def test_parse_reads_a_nested_override(parse):
    assert parse("--config.agent.discount=1")[0].agent.discount == 1.0


def test_parse_takes_overrides_before_and_after_the_file(parse, file):
    before = parse("--config.num_seeds=8", f"--config={file}:quick")
    after = parse(f"--config={file}:quick", "--config.num_seeds=8")
    assert before == after
    assert before[1].num_seeds == 8


def test_parse_takes_the_last_of_two_overrides(parse):
    assert parse("--config.num_seeds=8", "--config.num_seeds=9")[1].num_seeds == 9


def test_parse_sets_the_flags_of_the_command(parse):
    parse("--seeds_file=x", "--config.num_seeds=8")
    assert SEEDS_FILE.value == "x"


def test_parse_reads_a_flagfile(parse, tmp_path):
    listed = tmp_path / "flags.txt"
    listed.write_text("--config.num_seeds=8\n--seeds_file=y\n")
    assert parse(f"--flagfile={listed}")[1].num_seeds == 8
    assert SEEDS_FILE.value == "y"


def test_parse_takes_a_plain_dict_that_states_a_part(parse, tmp_path):
    text = "def get_config():\n    return {'agent': {'discount': 0.5}}\n"
    train, study = parse(f"--config={write_config(tmp_path, text, 'part.py')}")
    assert (train, study) == (Train(agent=Agent(discount=0.5)), Study())


def test_parse_reads_1e6_in_a_config_file(parse, tmp_path):
    text = CONFIG_FILE.replace("agent.discount = 0.98", "num_seeds = 1e6")
    study = parse(f"--config={write_config(tmp_path, text, 'big.py')}")[1]
    assert study.num_seeds == 1_000_000


def test_defaults_is_a_config_dict_with_every_key():
    merged = flags.defaults(Train, Study)
    assert isinstance(merged, ml_collections.ConfigDict)
    assert config.split(merged.to_dict(), Train, Study) == (Train(), Study())


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        (
            "--config.agent.discont=0.9",
            "config: unknown key agent.discont=0.9; did you mean agent.discount?",
        ),
        ("--config.num_seeds=2.5", "config: num_seeds=2.5; a whole number is accepted"),
        ("--config.num_seeds=x", "config: num_seeds='x'; a whole number is accepted"),
        ("--config.num_seeds", "config: num_seeds=True; a whole number is accepted"),
        ("--config.num_seeds=0", "config: num_seeds=0; accepted: at least 1"),
        ("--config.normalise=1", "config: normalise=1; true or false is accepted"),
        (
            "--config.agent.discount=nan",
            "config: agent.discount=nan; a finite number is accepted",
        ),
        (
            "--config.agent.discount.x=1",
            "config: agent.discount={'x': 1}; a finite number is accepted",
        ),
        ("--config.agent=1", "config: agent=1; it holds other keys: agent.discount"),
        (
            "--config.loss=vagrm",
            "config: loss='vagrm'; accepted: mle, vagram; did you mean vagram?",
        ),
        (
            "--noconfig.normalise=true",
            "--noconfig.normalise=true: takes no value; write --config.normalise=...",
        ),
        ("--seeds_fil=x", "--seeds_fil=x: unknown flag; did you mean --seeds_file?"),
        (
            "--num_seeds=8",
            "--num_seeds=8: unknown flag; did you mean --config.num_seeds?",
        ),
        ("--cofnig.num_seeds=8", "did you mean --config.num_seeds?"),
        ("--conf=x", "--conf=x: unknown flag; did you mean --config?"),
        ("--zzzzz", "--zzzzz: unknown flag; --help lists all flags"),
        ("quick", "quick: no flag; flags are written --name=value"),
        ("--seeds_file", "Missing value for flag --seeds_file"),
        ("--debug=perhaps", "flag --debug=perhaps"),
        ("--flagfile=no_such_file", "no_such_file"),
        ("--config=no_such_file.py", "--config=no_such_file.py: no such file; "),
    ],
)
def test_run_says_a_usage_error_in_one_line_with_status_2(fails, arg, message):
    status, error = fails(arg)
    assert status == 2
    assert message in error
    assert "\n" not in error


def test_run_names_the_variants_of_the_config_file(fails, file):
    status, error = fails(f"--config={file}:quik")
    assert status == 2
    assert error.endswith("ValueError: unknown variant quik; known: quick")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("x = 1\n", "KeyError: 'get_config'"),
        ("def get_config():\n    pass\n", "TypeError"),
        ("def get_config():\n    return {'num_sedes': 1}\n", "did you mean num_seeds?"),
        (CONFIG_FILE.replace("agent.", "agnet."), "AttributeError"),
    ],
)
def test_run_says_a_bad_config_file_in_one_line_with_status_2(
    fails, tmp_path, text, what
):
    status, error = fails(f"--config={write_config(tmp_path, text, 'bad.py')}")
    assert status == 2
    assert what in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("raises", "status", "message"),
    [
        (ValueError("fit: num_elites=7"), 2, "fit: num_elites=7"),
        (OSError("results: no metrics.csv"), 5, "results: no metrics.csv"),
        (PermissionError(13, "Permission denied", "out"), 5, "out: Permission denied"),
        (results.ResultsError("x.csv: damaged"), 5, "x.csv: damaged"),
        (devices.DeviceError("8 seeds need 9 GB"), 6, "8 seeds need 9 GB"),
        (session.RunError("stopped by SIGTERM", 143), 143, "stopped by SIGTERM"),
        (session.RunError("the environment failed", 3), 3, "the environment failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("two\nlines"), 2, "two lines"),
    ],
)
def test_run_says_an_error_of_main_in_one_line(fails, raises, status, message):
    assert fails(raises=raises) == (status, message)


def test_run_cuts_an_endless_message_and_says_so(fails):
    _, error = fails(raises=ValueError("word " * 1000))
    assert len(error) <= 1000
    assert error.endswith("(--debug shows all)")


def test_run_shows_the_traceback_under_debug_with_the_same_status(fails):
    status, error = fails("--debug", raises=ValueError("x=1; at most 0"))
    assert status == 2
    assert error.startswith("Traceback")
    assert error.splitlines()[-1] == "x=1; at most 0"


def test_run_leaves_a_fault_of_the_program_alone(fails):
    with pytest.raises(TypeError, match="a bug"):
        fails(raises=TypeError("a bug"))


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_run_exits_with_what_main_returns(file, returned, status):
    with pytest.raises(SystemExit) as caught:
        flags.run(
            lambda train, study: returned,
            *(Train, Study),
            default_config=file,
            argv=["train"],
        )
    assert caught.value.code == status


def test_a_shipped_config_is_found_from_any_folder(parse, tmp_path, monkeypatch):
    (tmp_path / "experiments" / "configs").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    write_config(tmp_path / "experiments" / "configs", CONFIG_FILE, "pendulum.py")
    monkeypatch.setattr(
        flags, "__file__", str(tmp_path / "vagram_jax" / "cli" / "flags.py")
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert parse("--config=vagram_jax/cli/configs/pendulum.py:quick")[1].num_seeds == 2
    with pytest.raises(
        flags.UsageError, match=r"mean vagram_jax/cli/configs/pendulum\.py"
    ):
        parse("--config=vagram_jax/cli/configs/pendulm.py")


def test_a_command_lists_its_flags_and_keys_and_every_value(file, tmp_path):
    command = write_config(
        tmp_path,
        f"""
        '''Trains nothing.

        At all.'''
        import test_flags
        from experiments import flags

        OVERWRITE = flags.DEFINE_bool("overwrite", False, "Start anew.")

        def main(train, study):
            print(train.loss, study.num_seeds, OVERWRITE.value)

        if __name__ == "__main__":
            types = test_flags.Train, test_flags.Study
            flags.run(main, *types, default_config={file!r})
        """,
        "command.py",
    )

    def call(*args):
        root = Path(flags.__file__).parents[2]
        return subprocess.run(
            [sys.executable, command, *args],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"},
        )

    done = call("--config.loss=mle", "--overwrite")
    assert (done.returncode, done.stdout, done.stderr) == (0, "mle 4 True\n", "")
    shown = call("--help", "--config.hidden=32,16")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0] == "Trains nothing."
    assert "  --overwrite: Start anew. (default: False)" in lines
    assert "  --config.agent.discount=0.98" in lines
    assert "  --config.hidden=32,16" in lines
    wrong = call("--config.agent.discont=1")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
