"""Small checkpoints, and checks of folders and messages, for the tests of storage."""

import numpy as np

from vagram_jax.storage import checkpoint


def one_line(error):
    """The message of a caught error, which must be one line."""
    text = str(error.value)
    assert "\n" not in text
    return text


def listing(folder):
    """All paths below a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def save(run, step, seeds):
    """Saves one array whose rows are the step and the seed."""
    rows = np.array([[step, seed] for seed in seeds], np.float32)
    checkpoint.save(checkpoint.Piece(run, seeds, {"x": rows}), step)


def piece_folder(run, step, seeds):
    return run / f"checkpoints/{step:09d}/seeds-{seeds[0]}-{seeds[-1]}"


def newest(run, seeds, **options):
    """The newest step of one run, and the lines on damaged pieces."""
    lines = []
    step = checkpoint.newest([(run, seeds)], report=lines.append, **options)
    return step, lines


def unfinished(run):
    return list(run.rglob("*.tmp"))
