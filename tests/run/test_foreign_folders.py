"""Results folders from somebody else: damaged files, links, FIFOs and wrong types.

Whatever a folder contains, `status`, `watch`, `report`, `--resume` with `--log` and
`load` end with a result or with one line, and nothing outside of the folder is
changed.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil

import pytest
import session_cases as cases
from session_cases import programs_once, whole

from vagram_jax.analysis import maps, plots, training
from vagram_jax.cli import flags, report, status, watch
from vagram_jax.run import loop, trained

__all__ = ["programs_once", "whole"]
pytestmark = [pytest.mark.usefixtures("programs_once"), pytest.mark.timeout(120)]

RUN_FILES = ["config.json", "metrics.csv", "model.csv", "timing.csv", "summary.json"]
RUN_FILES += ["failure.json", "lock.json", ".lock", "metrics.csv.1"]
STEP = f"checkpoints/{cases.LAST:09d}"
PIECE = f"{STEP}/seeds-0-1"
EVENTS = "tensorboard/seed0/events.out.tfevents.0"
CHECKPOINTS = ["checkpoints", STEP, PIECE, f"{PIECE}/arrays.npz"]
TARGETS = [f"run/{name}" for name in (*RUN_FILES, *CHECKPOINTS)]
TARGETS += ["run/tensorboard", "run/tensorboard/seed0", f"run/{EVENTS}"]
TARGETS += [f"run/{PIECE}/manifest.json", "study.json", "summary.json", "report.html"]
CONTROL = "\x1b[2J\x07\n\r\u202e\ud800"
VALUES = [None, [], {}, 7, -1e300, CONTROL, [[]], {"config": {}, "reason": [CONTROL]}]


def clear(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def replaced(make):
    def damage(path, victim, draw):
        clear(path)
        make(path, victim, draw)

    return damage


def cut(path, _, draw):
    data = path.read_bytes() if path.is_file() else b""
    clear(path)
    path.write_bytes(data[: draw.randrange(len(data) + 1)])


def flip(path, _, draw):
    data = bytearray(path.read_bytes() if path.is_file() else b"0")
    clear(path)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def retype(path, _, draw):
    """Replaces some values of a JSON file, or of cells of a table, by other types."""
    if path.suffix == ".csv" and path.is_file():
        lines = [line.split(",") for line in path.read_text().splitlines()]
        row = draw.choice(lines)
        row[draw.randrange(len(row))] = draw.choice(["x", "", "nan", "-1", "9" * 30])
        path.write_text("\n".join(",".join(line) for line in lines) + "\n")
        return
    is_json = path.suffix == ".json" and path.is_file()
    value = json.loads(path.read_text()) if is_json else None
    clear(path)
    if isinstance(value, dict) and value:
        inner = value
        while isinstance(inner, dict) and inner:
            outer, key = inner, draw.choice(sorted(inner))
            inner = inner[key] if draw.random() < 0.8 else None
        outer[key] = draw.choice(VALUES)
    else:
        value = draw.choice(VALUES)
    if path.name == "manifest.json" and isinstance(value, dict):  # self-consistent
        value.pop("sha256", None)
        text = json.dumps(value, sort_keys=True)
        value["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(value))


DAMAGES = {
    "missing": replaced(lambda path, *_: None),
    "empty": replaced(lambda path, *_: path.write_bytes(b"")),
    "cut off": cut,
    "a flipped bit": flip,
    "random bytes": replaced(lambda path, _, d: path.write_bytes(d.randbytes(300))),
    "a folder": replaced(lambda path, *_: (path / "inner").mkdir(parents=True)),
    "a link": replaced(lambda path, victim, _: path.symlink_to(victim)),
    "a link to a file": replaced(lambda p, victim, _: p.symlink_to(victim / "x")),
    "a link to nothing": replaced(lambda p, victim, _: p.symlink_to(victim / "y")),
    "a FIFO": replaced(lambda path, *_: os.mkfifo(path)),
    "other types": retype,
    "more types": retype,
    "deep JSON": replaced(lambda path, *_: path.write_text("[" * 50_000)),
}
CASES = [(target, damage) for target in TARGETS for damage in DAMAGES]
random.Random(0).shuffle(CASES)
NUM_FAST = 30


@pytest.fixture(scope="module")
def study(tmp_path_factory, whole):
    """A study with two finished runs and every file that a run can have."""
    folder = tmp_path_factory.mktemp("foreign") / cases.STUDY
    for name in ("other", "run"):
        run = shutil.copytree(cases.folder_of(whole), folder / name)
        (run / "model.csv").write_text("seed,env_steps,error_dim_0\n0,8,1.5\n0,11,2\n")
        (run / EVENTS).parent.mkdir(parents=True)
        (run / EVENTS).write_bytes(b"of before")
        (run / "failure.json").write_text('{"reason": "of before"}')
        owner = '{"host": "far-away", "pid": 7, "started": "now"}'
        (run / "lock.json").write_text(owner)
        os.utime(run / "lock.json", (0, 0))  # its owner has no heartbeat
    (folder / "study.json").write_text('{"design": {"methods": ["sac"]}}')
    return folder


@pytest.fixture
def victim(tmp_path):
    """A folder outside, which nothing may change."""
    folder = tmp_path / "victim"
    (folder / PIECE).mkdir(parents=True)
    for name in ("x", *RUN_FILES, f"{PIECE}/manifest.json"):
        (folder / name).write_text("precious")

    def content():
        return {
            path: path.read_text() if path.is_file() else path.stat().st_mtime_ns
            for path in folder.rglob("*")
        }

    before = content()
    yield folder
    assert content() == before


def outcome(action):
    """What an action printed; its error, if any, is one that a command shows."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            action()
        except Exception as error:
            if flags._status(error) is None:
                raise
            assert str(error).isprintable(), repr(str(error))
            print(error)
    lines = out.getvalue().splitlines()
    assert all(line.isprintable() for line in lines), lines
    return lines


def check(study, tmp_path, victim, number, monkeypatch):
    """Damages one file and runs everything that reads it."""
    target, damage = CASES[number]
    folder = shutil.copytree(study, tmp_path / cases.STUDY)
    path = folder / target
    DAMAGES[damage](path, victim, random.Random(number))
    lines = outcome(lambda: status.main([str(folder)]))
    assert any(line.startswith(f"{cases.STUDY}/other") for line in lines)
    # The plots are the slow part; they read tables only.
    if not target.endswith(".csv"):
        monkeypatch.setattr(plots, "learning_curves", lambda *_, **__: None)
        monkeypatch.setattr(maps, "attention", lambda *_: None)
        monkeypatch.setattr(plots, "performance_profiles", lambda *_, **__: None)
        monkeypatch.setattr(training, "_draw", lambda *_: None)
        monkeypatch.setattr(watch, "_encoded", lambda _: "")
    page = watch.Pages([str(folder)], every=5).render(cases.STUDY)
    assert page is None or f"{cases.STUDY}/other" in page
    monkeypatch.setattr(report, "published_curves", lambda: None)  # reads a flag
    lines = outcome(lambda: report.main([str(folder)]))
    if target.startswith("run/"):
        assert "other" in (folder / "report.html").read_text()
    outcome(lambda: trained.load(folder / "run", report=print))
    monkeypatch.setattr(loop, "train_lanes", lambda *_, **__: iter(()))
    outcome(lambda: resume(folder))


def resume(folder):
    os.unlink(folder / "run" / "summary.json")
    cases.train(folder.parent, resume=True, break_lock=True, log=("tensorboard",))


@pytest.mark.parametrize("number", range(NUM_FAST), ids=lambda n: "-".join(CASES[n]))
def test_any_content_ends_in_a_result_or_in_one_line(
    study, tmp_path, victim, number, monkeypatch
):
    check(study, tmp_path, victim, number, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", range(NUM_FAST, len(CASES)), ids=lambda n: "-".join(CASES[n])
)
def test_any_other_content_ends_in_a_result_or_in_one_line(
    study, tmp_path, victim, number, monkeypatch
):
    check(study, tmp_path, victim, number, monkeypatch)


def test_a_run_does_not_write_through_links(tmp_path, whole, victim):
    """Each name that a run writes, renames or removes is a link to a victim."""
    for name in ("checkpoints", *RUN_FILES):
        root = tmp_path / f"of-{name}"
        folder = shutil.copytree(cases.folder_of(whole), cases.folder_of(root))
        for gone in (name, "summary.json"):
            clear(folder / gone)
        (folder / name).symlink_to(victim / name)
        for options in ({"resume": True}, {"overwrite": True}, {}):
            outcome(lambda root=root, options=options: cases.train(root, **options))
