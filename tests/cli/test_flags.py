"""Command lines: what is accepted, and one line for what isn't."""

import sys
import textwrap
from types import SimpleNamespace

import ml_collections
import pytest
from absl.testing import flagsaver
from flax import struct

from vagram_jax import config
from vagram_jax.cli import configs, flags
from vagram_jax.schedules import Schedule, constant

SEEDS_FILE = flags.DEFINE_string("seeds_file", None, "A flag of a command.")


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
    normalize: bool = config.static(True)
    entropy: float | None = config.leaf(-1.0)
    note: str | None = config.static(None)
    share: Schedule = config.leaf(constant(1.0))
    agent: Agent = config.nested(Agent)


@struct.dataclass(kw_only=True)
class Study:
    """A second config in the same file."""

    num_seeds: int = config.static(4, low=1)


CONFIG_FILE = """
    import test_flags
    from vagram_jax.cli import configs

    def get_config(variant=""):
        config = configs.defaults(test_flags.Train, test_flags.Study)
        config.agent.discount = 0.98
        if variant == "quick":
            config.num_seeds = 2
        elif variant:
            raise ValueError(f"unknown variant {variant}; known: quick")
        return config
"""


@pytest.fixture(autouse=True)
def restore_flags(monkeypatch):
    # A config file imports the classes of this very module.
    monkeypatch.setitem(sys.modules, "test_flags", sys.modules[__name__])
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
    return lambda *args: flags.parse(["train", f"--config={file}", *args], Train, Study)


@pytest.fixture
def fails(file, capsys):
    """Runs a command whose `main` does nothing or raises; returns status and error."""

    def run(*args, raises=None):
        def main(train, study):
            if raises:
                raise raises

        with pytest.raises(SystemExit) as caught:
            flags.run(main, Train, Study, argv=["train", f"--config={file}", *args])
        output = capsys.readouterr()
        assert output.out == ""
        return caught.value.code, output.err.removesuffix("\n")

    return run


def test_parse_passes_the_variant_to_the_config_file(parse, file):
    assert parse() == (Train(agent=Agent(discount=0.98)), Study())
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
        ("--config.tag=a,b", "tag", "a,b"),
        ("--config.tag=two\nlines", "tag", "two\nlines"),
        ("--config.hidden=32,32", "hidden", (32, 32)),
        ("--config.hidden=(32, 32)", "hidden", (32, 32)),
        ("--config.hidden=[32]", "hidden", (32,)),
        ("--config.hidden=32", "hidden", (32,)),
        ("--config.hidden=()", "hidden", ()),
        ("--config.losses=mle,vagram", "losses", ("mle", "vagram")),
        ("--config.losses=('mle', 'vagram')", "losses", ("mle", "vagram")),
        ("--config.losses=1", "losses", ("1",)),
        ("--config.extra=a,b", "extra", ("a", "b")),
        ("--config.normalize=false", "normalize", False),
        ("--config.normalize=True", "normalize", True),
        ("--config.normalize", "normalize", True),
        ("--noconfig.normalize", "normalize", False),
        ("--config.entropy=none", "entropy", None),
        ("--config.entropy=None", "entropy", None),
        ("--config.entropy=-2", "entropy", -2.0),
        ("--config.note=2", "note", "2"),
        ("--config.note=none", "note", None),
        ("--config.tag=none", "tag", "none"),
        ("--config.share=0.5", "share", Schedule(0.5, 0.5)),
        ("--config.share=1,5,20000,1e5", "share", Schedule(1.0, 5.0, 20_000.0, 1e5)),
        ("--config.share=(1, 0, 10, 10)", "share", Schedule(1.0, 0.0, 10.0, 10.0)),
    ],
)
def test_parse_reads_an_override_as_its_field_declares(parse, arg, key, value):
    assert getattr(parse(arg)[0], key) == value


@pytest.mark.parametrize("text", ["8", "8.0", "8e0", "0_8"])
def test_parse_reads_every_form_of_a_whole_number(parse, text):
    assert parse(f"--config.num_seeds={text}")[1].num_seeds == 8


def test_parse_reads_a_nested_override(parse):
    assert parse("--config.agent.discount=1")[0].agent.discount == 1.0


def test_parse_uses_the_last_override_before_or_after_the_file(parse, file):
    before = parse("--config.num_seeds=8", f"--config={file}:quick")
    after = parse(f"--config={file}:quick", "--config.num_seeds=8")
    assert before == after == parse("--config.num_seeds=9", "--config.num_seeds=8")


def test_parse_sets_flags_also_from_a_flagfile(parse, tmp_path):
    parse("--seeds_file=x", "--config.num_seeds=8")
    assert SEEDS_FILE.value == "x"
    flagfile = tmp_path / "flags.txt"
    flagfile.write_text("--config.num_seeds=8\n--seeds_file=y\n")
    assert parse(f"--flagfile={flagfile}")[1].num_seeds == 8
    assert SEEDS_FILE.value == "y"


def test_parse_accepts_a_config_file_that_returns_a_partial_dict(parse, tmp_path):
    text = "def get_config():\n    return {'agent': {'discount': 0.5}}\n"
    train, study = parse(f"--config={write_config(tmp_path, text, 'part.py')}")
    assert (train, study) == (Train(agent=Agent(discount=0.5)), Study())


def test_parse_reads_1e6_in_a_config_file(parse, tmp_path):
    text = CONFIG_FILE.replace("agent.discount = 0.98", "num_seeds = 1e6")
    study = parse(f"--config={write_config(tmp_path, text, 'big.py')}")[1]
    assert study.num_seeds == 1_000_000


def test_defaults_returns_a_config_dict_with_every_key():
    merged = configs.defaults(Train, Study)
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
        ("--config.num_seeds=1,2", "config: num_seeds=(1, 2); a whole number is acce"),
        ("--config.num_seeds", "config: num_seeds=True; a whole number is accepted"),
        ("--config.num_seeds=0", "config: num_seeds=0; accepted: at least 1"),
        ("--config.normalize=1", "config: normalize=1; true or false is accepted"),
        (
            "--config.agent.discount=nan",
            "config: agent.discount=nan; a finite number is accepted",
        ),
        (
            "--config.agent.discount.x=1",
            "config: agent.discount={'x': 1}; a finite number is accepted",
        ),
        ("--config.agent=1", "config: agent=1; it holds other keys: agent.discount"),
        ("--config.hidden=", "config: hidden=; a tuple such as 64,64 is accepted, or"),
        ("--config.extra= ", "config: extra=; a tuple "),
        ("--config.share=1,2", "config: share=(1, 2); one number, or four: "),
        ("--config.share=half", "config: share='half'; "),
        (
            "--config.loss=vagrm",
            "config: loss='vagrm'; accepted: mle, vagram; did you mean vagram?",
        ),
        (
            "--noconfig.normalize=true",
            "--noconfig.normalize=true: takes no value; write --config.normalize=...",
        ),
        ("--seeds_fil=x", "--seeds_fil=x: unknown flag; did you mean --seeds_file?"),
        (
            "--num_seeds=8",
            "--num_seeds=8: unknown flag; did you mean --config.num_seeds?",
        ),
        ("--cofnig.num_seeds=8", "did you mean --config.num_seeds?"),
        ("--conf=x", "--conf=x: unknown flag; did you mean --config?"),
        ("--zzzzz", "--zzzzz: unknown flag; --help lists all flags"),
        ("quick", "quick: not a flag; flags are written --name=value"),
        ("--seeds_file", "--seeds_file: a value is missing; write --seeds_file=VALUE"),
        ("--debug=perhaps", "--debug=perhaps; true or false is accepted"),
        ("--flagfile=no_such_file", "No such file or directory: 'no_such_file'"),
        ("--config=no_such_file.py", "--config=no_such_file.py: no such config; "),
    ],
)
def test_run_reports_a_usage_error_in_one_line_with_status_2(fails, arg, message):
    status, error = fails(arg)
    assert status == 2
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("text", "status", "what"),
    [
        ("x = 1\n", 2, "no function get_config; define get_config()"),
        ("get_config = 1\n", 2, "no function get_config; define get_config()"),
        (
            "def get_config():\n    pass\n",
            2,
            "get_config (bad.py:1) returned None; a dict or a ConfigDict is accepted",
        ),
        ("def get_config():\n    return {'num_sedes': 1}\n", 2, "mean num_seeds?"),
        ("def get_config(:\n", 3, "SyntaxError: invalid syntax (bad.py, line 1)"),
        (
            "import no_such_module\n",
            3,
            "ModuleNotFoundError: No module named 'no_such_module' (bad.py:1)",
        ),
        (
            "def get_config():\n    return {}[1]\n",
            3,
            "it raised KeyError: 1 (bad.py:2); repair it",
        ),
        ("import sys\nsys.exit(0)\n", 3, "raised SystemExit: 0 (bad.py:2); repair it"),
        (CONFIG_FILE.replace("agent.", "agnet."), 3, "AttributeError"),
        (
            "import vagram_jax\n@vagram_jax.register('mine')\n"
            "def mine(params, batch, value_fn):\n    return 0.0\n",
            3,
            "loss 'mine', bad.py:2: got an unexpected keyword argument 'predict'; it ",
        ),
    ],
)
def test_run_reports_a_bad_config_file_in_one_line(fails, tmp_path, text, status, what):
    # 2 is a setting that isn't accepted, 3 is code of the user's that fails.
    path = write_config(tmp_path, text, "bad.py")
    actual, error = fails(f"--config={path}")
    assert error.startswith(f"--config={path}: ") or "num_sedes" in error
    assert what in error
    assert "\n" not in error
    assert actual == status
    assert fails(f"--config={path}", "--debug")[1].startswith("Traceback")


def test_run_reports_an_unknown_variant_of_a_config_file(fails, file, tmp_path):
    status, error = fails(f"--config={file}:quik")
    assert status == 3
    assert "ValueError: unknown variant quik; known: quick (task.py:" in error
    text = "def get_config():\n    return {}\n"
    plain = write_config(tmp_path, text, "plain.py")
    assert fails(f"--config={plain}:quick")[1].endswith("it has no variants")


class StatusError(RuntimeError):
    """An error with an exit status, as the classes of the package have it."""

    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


@pytest.mark.parametrize(
    ("raises", "status", "message"),
    [
        (ValueError("fit: num_elites=7"), 2, "fit: num_elites=7"),
        (OSError("results: no metrics.csv"), 5, "results: no metrics.csv"),
        (PermissionError(13, "Permission denied", "out"), 5, "out: Permission denied"),
        (StatusError("8 seeds need 9 GB", 6), 6, "8 seeds need 9 GB"),
        (StatusError("stopped by SIGTERM", 143), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("two\nlines"), 2, "two lines"),
    ],
)
def test_run_reports_an_error_of_main_in_one_line(fails, raises, status, message):
    assert fails(raises=raises) == (status, message)


def test_run_shortens_a_long_message(fails):
    _, error = fails(raises=ValueError("word " * 1000))
    assert len(error) <= 1000
    assert error.endswith("(--debug shows all)")


def test_run_shows_the_traceback_under_debug_with_the_same_status(fails):
    status, error = fails("--debug", raises=ValueError("x=1; at most 0"))
    assert status == 2
    assert error.startswith("Traceback")
    assert error.splitlines()[-1] == "x=1; at most 0"


def test_run_lets_a_bug_pass(fails):
    with pytest.raises(TypeError, match="a bug"):
        fails(raises=TypeError("a bug"))


def test_run_leaves_a_cluster_before_it_exits(fails, monkeypatch):
    statuses = []
    devices = SimpleNamespace(leave=statuses.append)
    monkeypatch.setitem(sys.modules, "vagram_jax.run.devices", devices)
    assert fails(raises=StatusError("out of memory", 6))[0] == 6
    assert statuses == [6]
    # A process that never loaded this module is in no cluster.
    monkeypatch.delitem(sys.modules, "vagram_jax.run.devices")
    assert fails(raises=StatusError("out of memory", 6))[0] == 6


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_run_exits_with_what_main_returns(file, returned, status):
    with pytest.raises(SystemExit) as caught:
        flags.run(
            lambda train, study: returned,
            *(Train, Study),
            argv=["train", f"--config={file}"],
        )
    assert caught.value.code == status


def test_help_lists_the_flags_and_every_key_with_its_value(file, capsys):
    def main(train, study):
        raise AssertionError("--help must not run the command")

    argv = ["train", f"--config={file}", "--help", "--config.hidden=32,16"]
    with pytest.raises(SystemExit) as caught:
        flags.run(main, Train, Study, argv=argv)
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Command lines: what is accepted, and one line for what isn't."
    assert "  --seeds_file            A flag of a command." in lines
    assert "  --debug                 Show the traceback of an error." in lines
    assert "  --config.agent.discount=0.98" in lines
    assert "  --config.hidden=32,16   Accepted: at least 1." in lines
    assert "  --config.note=none" in lines


def test_parse_refuses_a_flag_that_the_command_does_not_read():
    with pytest.raises(flags.UsageError, match=r"^--seeds_file=x: unknown flag; "):
        flags.parse(["status", "--seeds_file=x"], accepted=["debug"])
    assert flags.parse(["status", "--seeds_file=x"], accepted=["seeds_file"]) == ()
