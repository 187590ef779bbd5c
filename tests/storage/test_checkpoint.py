"""Checkpoints: every bit comes back, and every damage is noticed."""

import json
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax.run import devices
from vagram_jax.storage import checkpoint, files
from vagram_jax.storage.checkpoint import CheckpointError, Piece

SMALLEST = np.float32(1e-45)
# Two quiet NaN, one of them negative, with bits that arithmetic would not leave there.
NANS = np.array([0x7FC01234, 0xFFC56789], np.uint32).view(np.float32)


def arrays(lanes, seed=0):
    """Every type and shape that a state has, and the numbers that get lost first."""
    draw = np.random.default_rng(seed)
    odd = [np.inf, -np.inf, -0.0, 0.0, SMALLEST, -SMALLEST, *NANS, 1 / 3]
    return {
        ".float": draw.normal(size=(lanes, 5, 3)).astype(np.float32),
        ".odd": np.tile(np.array(odd, np.float32), (lanes, 1)),
        # A store that leaves out zeros must not take these for zeros.
        ".negative_zero": np.full((lanes, 4), -0.0, np.float32),
        ".zero": np.zeros((lanes, 4), np.float32),
        ".int": draw.integers(-(2**31), 2**31, (lanes,), np.int32),
        ".uint": draw.integers(0, 2**32, (lanes, 2), np.uint32),
        ".bool": draw.random((lanes, 7)) < 0.5,
        ".empty": np.empty((lanes, 0, 3), np.float32),
        # Names as JAX gives them to what an environment keeps in dicts.
        ".metrics['reward/alive']": np.arange(lanes, dtype=np.float32),
        ".metrics['reward']['alive']": np.arange(lanes, dtype=np.float32) + 1,
        '.info["it\'s .. odd"]': np.arange(lanes, dtype=np.float32) + 2,
        f".{'long' * 80}": np.arange(lanes, dtype=np.float32) + 3,
    }


def save(run, step, seeds, seed=None):
    """Saves arrays that differ from step to step; gives them."""
    saved = arrays(len(seeds), step if seed is None else seed)
    checkpoint.save(Piece(run, seeds, saved), step)
    return saved


def small(run, step, seeds):
    """The same with a single array, which tells step and seed."""
    rows = np.array([[step, seed] for seed in seeds], np.float32)
    checkpoint.save(Piece(run, seeds, {"x": rows}), step)


def place(run, step, seeds):
    return run / f"checkpoints/{step:09d}/seeds-{seeds[0]}-{seeds[-1]}"


def assert_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def newest(run, seeds, **settings):
    """The newest step and what was told."""
    told = []
    step = checkpoint.newest([(run, seeds)], tell=told.append, **settings)
    return step, told


def temporary(run):
    return list(run.rglob("*.tmp"))


def test_every_bit_of_every_type_comes_back(tmp_path):
    saved = save(tmp_path, 7, range(3))
    assert newest(tmp_path, range(3)) == (7, [])
    assert_bits(checkpoint.load(tmp_path, 7, range(3)), saved)
    assert not temporary(tmp_path)


def test_seeds_come_back_in_any_order_from_any_pieces(tmp_path):
    parts = [save(tmp_path, 7, seeds, seeds[0]) for seeds in (range(2, 4), range(4, 9))]
    whole = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    for seeds in ([2, 3, 4, 5, 6, 7, 8], [8, 3, 4], [5], [4, 4, 2]):
        assert newest(tmp_path, seeds) == (7, [])
        wanted = {name: x[np.array(seeds) - 2] for name, x in whole.items()}
        assert_bits(checkpoint.load(tmp_path, 7, seeds), wanted)


def test_of_a_piece_only_what_is_named_is_read(tmp_path, monkeypatch):
    saved = save(tmp_path, 7, range(3))
    wanted = sorted(saved)[1:3]
    asked, read = [], np.lib.npyio.NpzFile.__getitem__

    def noted(self, name):
        asked.append(name)
        return read(self, name)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", noted)
    found = checkpoint.load(tmp_path, 7, [2, 0], names={*wanted, "absent"})
    assert_bits(found, {name: saved[name][[2, 0]] for name in wanted})
    assert sorted(asked) == wanted
    assert checkpoint.load(tmp_path, 7, [0], names=()) == {}


def test_a_seed_without_a_piece_is_named(tmp_path):
    small(tmp_path, 7, range(2))
    for step, seed in ((7, 2), (8, 0)):
        with pytest.raises(CheckpointError, match=f"step {step} lacks seed {seed}"):
            checkpoint.load(tmp_path, step, [seed])


def test_pieces_of_two_kinds_are_refused(tmp_path):
    small(tmp_path, 7, range(2))
    checkpoint.save(Piece(tmp_path, range(2, 4), {"y": np.zeros(2)}), 7)
    with pytest.raises(CheckpointError, match="pieces of two kinds"):
        checkpoint.load(tmp_path, 7, range(4))


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 7, range(2), seed=1)
    again = save(tmp_path, 7, range(2), seed=2)
    assert newest(tmp_path, range(2)) == (7, [])
    assert_bits(checkpoint.load(tmp_path, 7, range(2)), again)
    assert not temporary(tmp_path)


def test_the_newest_step_is_one_that_all_seeds_of_all_runs_have(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for step in (5, 8, 11, 1_000_000_000):
        small(one, step, range(2))
    for step in (8, 11):
        small(two, step, range(4, 6))
    small(two, 5, range(4, 5))
    small(one, 8, range(2, 4))
    both = [(one, range(2)), (two, [5, 4])]
    assert checkpoint.newest(both) == 11
    assert checkpoint.newest(both, at_most=11) == 11
    assert checkpoint.newest(both, at_most=10) == 8
    # At step 5 a seed is missing.
    assert checkpoint.newest(both, at_most=7) is None
    assert checkpoint.newest([(one, range(2))]) == 1_000_000_000
    assert checkpoint.newest([(one, range(4))]) == 8
    assert checkpoint.newest([(one, range(5))]) is None
    assert checkpoint.newest([(two, [4])], at_most=5) == 5
    assert checkpoint.newest([(tmp_path / "none", [0])]) is None
    assert checkpoint.steps(one) == [5, 8, 11, 1_000_000_000]
    assert checkpoint.steps(tmp_path) == []


def test_a_damaged_step_of_one_run_takes_all_runs_back(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for step in (5, 8):
        small(one, step, range(2))
        small(two, step, range(2))
    (place(two, 8, range(2)) / "manifest.json").unlink()
    told = []
    assert checkpoint.newest([(one, [0]), (two, [0])], tell=told.append) == 5
    assert len(told) == 1
    # A run whose own pieces are whole is not held back.
    assert newest(one, range(2)) == (8, [])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with two steps, not to be changed."""
    run = tmp_path_factory.mktemp("whole")
    saved = {step: save(run, step, range(2)) for step in (5, 8)}
    return run, saved


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole[0], tmp_path / "run")


def test_every_flipped_bit_is_noticed_and_its_file_named(run, whole):
    paths = sorted(p for p in place(run, 8, range(2)).rglob("*") if p.is_file())
    paths = [path for path in paths if path.stat().st_size]
    draw = random.Random(0)
    chosen = [*paths, *draw.choices(paths, k=20)]
    assert len(paths) == 2
    for path in chosen:
        before = path.read_bytes()
        data = bytearray(before)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        step, told = newest(run, range(2))
        assert (step, len(told)) == (5, 1)
        assert str(path) in told[0]
        assert "\n" not in told[0]
        path.write_bytes(before)
    assert newest(run, range(2)) == (8, [])
    assert_bits(checkpoint.load(run, 5, range(2)), whole[1][5])


def arrays_of(run):
    return place(run, 8, range(2)) / "arrays.npz"


def manifest_of(run):
    return place(run, 8, range(2)) / "manifest.json"


def rewrite(path, **changes):
    """Changes a manifest as another program would that signs it too."""
    body = files.read_json(path) | changes
    body.pop("sha256")
    files.write_json(path, body | {"sha256": checkpoint._digest(body)})


DAMAGES = {
    "a byte is missing": lambda run: os.truncate(
        arrays_of(run), arrays_of(run).stat().st_size - 1
    ),
    "a byte too much": lambda run: arrays_of(run).open("ab").write(b"\0"),
    "an empty file": lambda run: arrays_of(run).write_bytes(b""),
    "a missing file": lambda run: arrays_of(run).unlink(),
    "no manifest": lambda run: manifest_of(run).unlink(),
    "an empty manifest": lambda run: manifest_of(run).write_bytes(b""),
    "half a manifest": lambda run: os.truncate(manifest_of(run), 100),
    "a manifest of zeros": lambda run: manifest_of(run).write_bytes(bytes(900)),
    "a list": lambda run: manifest_of(run).write_text("[]"),
    "an object": lambda run: manifest_of(run).write_text("{}"),
    "an infinity": lambda run: manifest_of(run).write_text('{"step": 1e999}'),
    "deep brackets": lambda run: manifest_of(run).write_text("[" * 100_000),
    "a manifest too long": lambda run: manifest_of(run).open("ab").truncate(2**24 + 1),
    "of another step": lambda run: shutil.copy(
        place(run, 5, range(2)) / "manifest.json", manifest_of(run)
    ),
    "signed for another step": lambda run: rewrite(manifest_of(run), step=5),
    "signed for other seeds": lambda run: rewrite(manifest_of(run), seeds=[0, 1, 2]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_piece_is_told_and_the_one_before_is_used(run, whole, damage):
    DAMAGES[damage](run)
    step, (line,) = newest(run, range(2))
    assert step == 5
    assert str(place(run, 8, range(2))) in line
    assert line.endswith("going back to the checkpoint before")
    assert "\n" not in line
    with pytest.raises(CheckpointError, match="leave out --strict"):
        newest(run, range(2), strict=True)
    assert_bits(checkpoint.load(run, 5, range(2)), whole[1][5])


def test_with_all_steps_damaged_there_is_none(run):
    for step in (5, 8):
        (place(run, step, range(2)) / "manifest.json").unlink()
    step, told = newest(run, range(2))
    assert (step, len(told)) == (None, 2)


def test_another_format_is_refused_and_not_taken_for_damage(run):
    rewrite(manifest_of(run), format=checkpoint.FORMAT + 1)
    wanted = f"format {checkpoint.FORMAT + 1}; this version reads format"
    with pytest.raises(CheckpointError, match=wanted) as caught:
        newest(run, range(2))
    assert str(manifest_of(run)) in str(caught.value)
    # Beyond its reach, an older step is used as ever.
    assert newest(run, range(2), at_most=7) == (5, [])


def test_what_is_no_piece_is_ignored(run):
    folder = run / "checkpoints"
    os.symlink(place(run, 5, range(2)), folder / "000000008/seeds-2-3")
    (folder / "000000011").mkdir()
    os.symlink(place(run, 8, range(2)), folder / "000000011/seeds-0-1")
    (folder / "000000014").mkdir()
    shutil.copytree(place(run, 8, range(2)), folder / "000000014/.seeds-0-1.abc.tmp")
    for name in ("seeds-0-x", "seeds-1", "others"):
        (folder / "000000014" / name).mkdir()
    for name in ("15", "latest", "-00000016"):
        shutil.copytree(folder / "000000008", folder / name, symlinks=True)
    assert checkpoint.steps(run) == [5, 8]
    assert newest(run, range(2)) == (8, [])
    assert newest(run, range(4)) == (None, [])


def test_objects_are_not_saved(tmp_path):
    """So nothing is there that a reader would have to unpickle."""
    for array in (np.array([None, object()]), np.array(["a", "b"])):
        with pytest.raises(files.ResultsError, match=r"x: .* can't be saved"):
            checkpoint.save(Piece(tmp_path, range(2), {"x": array}), 7)
    assert checkpoint.steps(tmp_path) == []
    assert not temporary(tmp_path)


def state(lanes, seed=0):
    """Some states as training has them, random keys among them, also two per lane."""
    keys = jax.random.split(jax.random.key(seed), lanes)
    return {
        "keys": keys,
        "more": jax.vmap(lambda key: jax.random.split(key, 2))(keys),
        "tree": (jnp.arange(lanes), {"x": jnp.ones((lanes, 2)) / 3}),
        "empty": jnp.empty((lanes, 0)),
    }


def shapes(states):
    return jax.eval_shape(lambda x: x, states)


def test_states_survive_packing_saving_and_unpacking(tmp_path):
    states, layout = state(3), devices.Layout()
    packed = checkpoint.pack(states)
    assert all(isinstance(array, np.ndarray) for array in packed.values())
    checkpoint.save(Piece(tmp_path, range(3), packed), 7)
    read = checkpoint.load(tmp_path, 7, range(3))
    back = checkpoint.unpack(read, shapes(states), layout)
    assert jax.tree.structure(back) == jax.tree.structure(states)
    assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(
        lambda x: x.dtype, states
    )
    assert_bits(checkpoint.pack(back), packed)
    # Not only the same bits, but keys that draw the same.
    draw = jax.vmap(jax.random.normal)
    np.testing.assert_array_equal(draw(back["keys"]), draw(states["keys"]))


def test_names_are_those_of_packing_and_none_has_no_name():
    states = state(2)
    assert [*checkpoint.named(states)] == [*checkpoint.pack(states)]
    part = states | {"more": None, "tree": (None, states["tree"][1])}
    names = ["['empty']", "['keys']", "['tree'][1]['x']"]
    assert [*checkpoint.named(part)] == names


def test_a_part_is_arranged_on_the_host_whatever_the_number_of_lanes():
    states = state(3)
    packed = checkpoint.pack(states)
    part = {"keys": None, "more": None, "empty": None} | {
        "tree": shapes(state(1))["tree"]
    }
    arrays = {name: packed[name] for name in checkpoint.named(part)}
    found = checkpoint.arrange(arrays, part)
    np.testing.assert_array_equal(found["tree"][0], [0, 1, 2])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert found["keys"] is None
    with pytest.raises(CheckpointError, match="3 arrays differ"):
        checkpoint.arrange(packed, part)


def test_packing_copies(key_reuse):
    states = state(2)
    packed = checkpoint.pack(states)
    before = {name: array.tobytes() for name, array in packed.items()}
    # Packing used no key up, and the program may take the memory.
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s["tree"]), donate_argnums=0)(
        states
    )
    assert {name: array.tobytes() for name, array in packed.items()} == before


UNFIT = {
    "another shape": ({"x": np.zeros((2, 4), np.float32)}, r"\['x'\] is .*4.*has .*3"),
    "another type": ({"x": np.zeros((2, 3), np.int32)}, r"\['x'\] is .*int32.*float32"),
    "another name": ({"z": np.zeros((2, 3), np.float32)}, r"\['x'\] is missing"),
    "one too many": (
        {"x": np.zeros((2, 3), np.float32), "z": np.zeros(2)},
        r"\['z'\] is .*float64.*this run has none",
    ),
    "none at all": ({}, r"\['x'\] is missing"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_states_of_another_kind_are_refused(case):
    found, wanted = UNFIT[case]
    packed = {f"['{name}']": array for name, array in found.items()}
    expected = {"x": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    with pytest.raises(CheckpointError, match=wanted) as caught:
        checkpoint.unpack(packed, expected, devices.Layout())
    assert "\n" not in str(caught.value)


def test_joining_repeats_the_last_row():
    parts = [{"x": np.array([1, 2])}, {"x": np.array([3])}]
    assert checkpoint.join(parts, 5)["x"].tolist() == [1, 2, 3, 3, 3]
    assert checkpoint.join(parts, 3)["x"].tolist() == [1, 2, 3]
    with pytest.raises(CheckpointError, match="different arrays"):
        checkpoint.join([parts[0], {"y": np.array([3])}], 3)


def test_a_manifest_lists_all_files_with_their_sums(run):
    manifest = json.loads(manifest_of(run).read_text())
    folder = manifest_of(run).parent
    paths = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == paths - {"manifest.json"}
    assert (manifest["format"], manifest["step"], manifest["seeds"]) == (1, 8, [0, 1])
    assert manifest["arrays"][".empty"] == ["float32", 2, 0, 3]
