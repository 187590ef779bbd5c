"""Checkpoints: every bit is restored, and every damage is noticed."""

import os
import random
import shutil

import numpy as np
import pytest
from storage_cases import newest, one_line, piece_folder, save, unfinished

from vagram_jax.storage import checkpoint, files
from vagram_jax.storage.checkpoint import CheckpointError, Piece

SMALLEST = np.float32(1e-45)
# Two quiet NaN, one of them negative, with payloads that arithmetic doesn't produce.
NANS = np.array([0x7FC01234, 0xFFC56789], np.uint32).view(np.float32)
SEEDS = range(2)


def arrays(lanes, seed=0):
    """Every type and shape of a training state, and numbers that are lost easily."""
    draw = np.random.default_rng(seed)
    special = [np.inf, -np.inf, -0.0, 0.0, SMALLEST, -SMALLEST, *NANS, 1 / 3]
    return {
        ".float": draw.normal(size=(lanes, 5, 3)).astype(np.float32),
        ".special": np.tile(np.array(special, np.float32), (lanes, 1)),
        # A format that leaves out zeros must not drop the sign of these.
        ".negative_zero": np.full((lanes, 4), -0.0, np.float32),
        ".int": draw.integers(-(2**31), 2**31, (lanes,), np.int32),
        ".uint": draw.integers(0, 2**32, (lanes, 2), np.uint32),
        ".bool": draw.random((lanes, 7)) < 0.5,
        ".empty": np.empty((lanes, 0, 3), np.float32),
        # Names that JAX gives to the dicts of an environment.
        ".metrics['reward/alive']": np.arange(lanes, dtype=np.float32),
        ".metrics['reward']['alive']": np.arange(lanes, dtype=np.float32) + 1,
        '.info["it\'s .. odd"]': np.arange(lanes, dtype=np.float32) + 2,
        f".{'long' * 80}": np.arange(lanes, dtype=np.float32) + 3,
    }


def save_arrays(run, step, seeds):
    """Saves and returns arrays that differ from step to step."""
    saved = arrays(len(seeds), step)
    checkpoint.save(Piece(run, seeds, saved), step)
    return saved


def assert_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        assert actual[name].shape == array.shape, name
        assert actual[name].tobytes() == array.tobytes(), name


def test_load_returns_the_saved_bits_in_any_order_from_any_pieces(tmp_path):
    parts = []
    for seeds in (range(2, 4), range(4, 9)):
        parts.append(arrays(len(seeds), seeds[0]))
        checkpoint.save(Piece(tmp_path, seeds, parts[-1]), 7)
    whole = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    for seeds in ([2, 3, 4, 5, 6, 7, 8], [8, 3, 4], [5], [4, 4, 2]):
        assert newest(tmp_path, seeds) == (7, [])
        expected = {name: x[np.array(seeds) - 2] for name, x in whole.items()}
        assert_bits(checkpoint.load(tmp_path, 7, seeds), expected)
    assert not unfinished(tmp_path)


def test_load_reads_only_the_named_arrays(tmp_path, monkeypatch):
    saved = save_arrays(tmp_path, 7, range(3))
    names = sorted(saved)[1:3]
    read, original = [], np.lib.npyio.NpzFile.__getitem__

    def recorded(self, name):
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", recorded)
    loaded = checkpoint.load(tmp_path, 7, [2, 0], names={*names, "absent"})
    assert_bits(loaded, {name: saved[name][[2, 0]] for name in names})
    assert sorted(read) == names
    assert checkpoint.load(tmp_path, 7, [0], names=()) == {}


def test_load_names_a_seed_without_a_piece(tmp_path):
    save(tmp_path, 7, SEEDS)
    for step, seed in ((7, 2), (8, 0)):
        with pytest.raises(CheckpointError, match=f"step {step} lacks seed {seed}"):
            checkpoint.load(tmp_path, step, [seed])


def test_load_refuses_pieces_with_different_arrays(tmp_path):
    save(tmp_path, 7, SEEDS)
    checkpoint.save(Piece(tmp_path, range(2, 4), {"y": np.zeros(2)}), 7)
    with pytest.raises(CheckpointError, match="step 7 hold different arrays"):
        checkpoint.load(tmp_path, 7, range(4))


def test_save_replaces_the_same_step(tmp_path):
    save_arrays(tmp_path, 7, SEEDS)
    again = arrays(2, seed=1)
    checkpoint.save(Piece(tmp_path, SEEDS, again), 7)
    assert newest(tmp_path, SEEDS) == (7, [])
    assert_bits(checkpoint.load(tmp_path, 7, SEEDS), again)
    assert not unfinished(tmp_path)


def test_newest_is_a_step_that_all_seeds_of_all_runs_have(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for step in (5, 8, 11, 1_000_000_000):
        save(one, step, SEEDS)
    for step in (8, 11):
        save(two, step, range(4, 6))
    save(two, 5, range(4, 5))
    save(one, 8, range(2, 4))
    both = [(one, SEEDS), (two, [5, 4])]
    assert checkpoint.newest(both) == 11
    assert checkpoint.newest(both, at_most=11) == 11
    assert checkpoint.newest(both, at_most=10) == 8
    assert checkpoint.newest(both, at_most=7) is None  # seed 5 has no step 5
    assert checkpoint.newest([(one, SEEDS)]) == 1_000_000_000
    assert checkpoint.newest([(one, range(4))]) == 8
    assert checkpoint.newest([(one, range(5))]) is None
    assert checkpoint.newest([(two, [4])], at_most=5) == 5
    assert checkpoint.newest([(tmp_path / "none", [0])]) is None
    assert checkpoint.steps(one) == [5, 8, 11, 1_000_000_000]
    assert checkpoint.steps(tmp_path) == []


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run with two steps, which no test changes, and its arrays."""
    run = tmp_path_factory.mktemp("original")
    return run, {step: save_arrays(run, step, SEEDS) for step in (5, 8)}


@pytest.fixture
def run(original, tmp_path):
    """A copy of the original run."""
    return shutil.copytree(original[0], tmp_path / "run")


def arrays_of(run):
    return piece_folder(run, 8, SEEDS) / "arrays.npz"


def manifest_of(run):
    return piece_folder(run, 8, SEEDS) / "manifest.json"


def test_newest_of_several_runs_skips_a_step_that_is_damaged_in_one(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    manifest_of(other).unlink()
    lines = []
    assert checkpoint.newest([(run, [0]), (other, [0])], report=lines.append) == 5
    assert len(lines) == 1
    assert newest(run, SEEDS) == (8, [])


def test_newest_notices_every_flipped_bit_and_names_the_file(run):
    draw = random.Random(0)
    for path in (arrays_of(run), manifest_of(run)):
        data = path.read_bytes()
        for _ in range(6):
            damaged = bytearray(data)
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            step, (line,) = newest(run, SEEDS)
            assert step == 5
            assert str(path) in line
            assert "\n" not in line
        path.write_bytes(data)
    assert newest(run, SEEDS) == (8, [])


def rewrite(path, **changes):
    """Changes a manifest and updates its SHA-256."""
    body = files.read_json(path) | changes
    body.pop("sha256")
    files.write_json(path, body | {"sha256": checkpoint._digest(body)})


DAMAGES = {
    "a byte too few": lambda run: os.truncate(
        arrays_of(run), arrays_of(run).stat().st_size - 1
    ),
    "a byte too many": lambda run: arrays_of(run).open("ab").write(b"\0"),
    "an empty file": lambda run: arrays_of(run).write_bytes(b""),
    "a missing file": lambda run: arrays_of(run).unlink(),
    "no manifest": lambda run: manifest_of(run).unlink(),
    "an empty manifest": lambda run: manifest_of(run).write_bytes(b""),
    "half a manifest": lambda run: os.truncate(manifest_of(run), 100),
    "a manifest of zeros": lambda run: manifest_of(run).write_bytes(bytes(900)),
    "a list": lambda run: manifest_of(run).write_text("[]"),
    "an empty object": lambda run: manifest_of(run).write_text("{}"),
    "an infinity": lambda run: manifest_of(run).write_text('{"step": 1e999}'),
    "deep brackets": lambda run: manifest_of(run).write_text("[" * 100_000),
    "a manifest too long": lambda run: manifest_of(run).open("ab").truncate(2**24 + 1),
    "of another step": lambda run: shutil.copy(
        piece_folder(run, 5, SEEDS) / "manifest.json", manifest_of(run)
    ),
    "signed for another step": lambda run: rewrite(manifest_of(run), step=5),
    "signed for other seeds": lambda run: rewrite(manifest_of(run), seeds=[0, 1, 2]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_newest_reports_a_damaged_piece_and_uses_an_earlier_one(run, original, damage):
    DAMAGES[damage](run)
    step, (line,) = newest(run, SEEDS)
    assert step == 5
    assert str(piece_folder(run, 8, SEEDS)) in line
    assert line.endswith("; trying an earlier checkpoint")
    assert "\n" not in line
    with pytest.raises(CheckpointError, match="leave out --strict"):
        newest(run, SEEDS, strict=True)
    assert_bits(checkpoint.load(run, 5, SEEDS), original[1][5])


def test_newest_is_none_if_all_steps_are_damaged(run):
    for step in (5, 8):
        (piece_folder(run, step, SEEDS) / "manifest.json").unlink()
    step, lines = newest(run, SEEDS)
    assert (step, len(lines)) == (None, 2)


def test_newest_refuses_another_format(run):
    rewrite(manifest_of(run), format=checkpoint.FORMAT + 1)
    message = f"format {checkpoint.FORMAT + 1}; this version reads format"
    with pytest.raises(CheckpointError, match=message) as caught:
        newest(run, SEEDS)
    assert str(manifest_of(run)) in one_line(caught)
    assert caught.value.status == 5
    # A step that isn't read isn't refused.
    assert newest(run, SEEDS, at_most=7) == (5, [])


def test_links_and_other_folders_are_no_pieces(run):
    folder = run / "checkpoints"
    os.symlink(piece_folder(run, 5, SEEDS), folder / "000000008/seeds-2-3")
    (folder / "000000011").mkdir()
    os.symlink(piece_folder(run, 8, SEEDS), folder / "000000011/seeds-0-1")
    (folder / "000000014").mkdir()
    shutil.copytree(
        piece_folder(run, 8, SEEDS), folder / "000000014/.seeds-0-1.abc.tmp"
    )
    for name in ("seeds-0-x", "seeds-1", "others"):
        (folder / "000000014" / name).mkdir()
    for name in ("15", "latest", "-00000016"):
        shutil.copytree(folder / "000000008", folder / name, symlinks=True)
    assert checkpoint.steps(run) == [5, 8]
    assert newest(run, SEEDS) == (8, [])
    assert newest(run, range(4)) == (None, [])


def test_save_refuses_objects_and_text_so_that_nothing_is_unpickled(tmp_path):
    for array in (np.array([None, object()]), np.array(["a", "b"])):
        with pytest.raises(files.ResultsError, match=r"x: .* can't be saved"):
            checkpoint.save(Piece(tmp_path, SEEDS, {"x": array}), 7)
    assert checkpoint.steps(tmp_path) == []
    assert not unfinished(tmp_path)


def test_join_repeats_the_last_row():
    parts = [{"x": np.array([1, 2])}, {"x": np.array([3])}]
    assert checkpoint.join(parts, 5)["x"].tolist() == [1, 2, 3, 3, 3]
    assert checkpoint.join(parts, 3)["x"].tolist() == [1, 2, 3]
    with pytest.raises(CheckpointError, match="different arrays"):
        checkpoint.join([parts[0], {"y": np.array([3])}], 3)


def test_a_manifest_lists_files_and_arrays(run):
    manifest = files.read_json(manifest_of(run))
    assert set(manifest["files"]) == {"arrays.npz"}
    assert (manifest["format"], manifest["step"], manifest["seeds"]) == (2, 8, [0, 1])
    assert manifest["arrays"][".empty"] == ["float32", 2, 0, 3]
