"""Transitions for training, and files of them."""

import numpy as np

FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
ROWS = 12


def arrays(rows=ROWS, obs_dim=1, seed=0):
    """Random arrays of a file."""
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.normal(size=(rows, obs_dim)).astype(np.float32),
        "action": rng.uniform(-1, 1, size=(rows, 1)).astype(np.float32),
        "reward": rng.normal(size=rows).astype(np.float32),
        "next_obs": rng.normal(size=(rows, obs_dim)).astype(np.float32),
        "terminated": rng.uniform(size=rows) < 0.3,
        "truncated": np.zeros(rows, bool),
    }


def saved(folder, name="data.npz", **changes):
    """The path of a file with some arrays changed; None leaves one out."""
    given = arrays() | changes
    np.savez(folder / name, **{k: v for k, v in given.items() if v is not None})
    return str(folder / name)


def assert_rows(transitions, expected, rows=slice(None)):
    for field in FIELDS:
        actual = np.asarray(getattr(transitions, field))
        np.testing.assert_array_equal(actual[rows], expected[field], err_msg=field)
