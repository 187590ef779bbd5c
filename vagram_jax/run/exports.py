"""Writes what a run has trained as a model repository, and reads it back.

    FOLDER/README.md           the model card, whose head Hugging Face reads
           config.json         the record of the run, the seed and a SHA-256
           model.safetensors   policy, critics, dynamics model
           replay.mp4          a film, if there is one

The names are those that Hugging Face looks for. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from vagram_jax.config import ConfigError
from vagram_jax.run import datasets, grid, states
from vagram_jax.storage import disk, files, records
from vagram_jax.storage.checkpoint import CheckpointError

if TYPE_CHECKING:
    from vagram_jax.run.trained import Trained

_WEIGHTS, _FILM = "model.safetensors", "replay.mp4"
# The key of `config.json` that holds the seed and the digests.
_KEY = "export"

_CARD = """\
---
{head}
---

# {title}, seed {seed}

A policy for `{env}`, its critics and {model}, trained for {steps}
with the loss `{loss}` of vagram_jax
([VaGraM](https://arxiv.org/abs/2204.01464)).{end}

Return: **{measured}** (mean and standard deviation over {episodes} episodes, without
exploration noise). {film}

## Use

```python
import jax
import vagram_jax
from huggingface_hub import snapshot_download

folder = snapshot_download("USER/NAME", local_dir="model")  # or this folder
trained = vagram_jax.load(folder)
state = trained.env.reset(jax.random.key(0))
action = trained.act(state.obs)
```

`load` runs the code of the environment that `config.json` names. It needs the extra
`export`: `pip install "vagram_jax[export]"`.

## Files

- `model.safetensors`: the arrays, in the units of the task
- `config.json`: all settings, versions, device and command of the run
"""


class Contents(NamedTuple):
    """What a model card says beside the settings.

    Attributes:
      title: study and run, such as `"hopper/vagram"`.
      returns: the measured return of each episode.
      film: an MP4, or None.
      no_film: why there is no film; empty if there is one.
    """

    title: str
    returns: Sequence[float]
    film: bytes | None = None
    no_film: str = ""


def check(folder: Path) -> None:
    """Refuses a folder to export to, before anything is computed.

    Raises:
      ConfigError: it isn't empty, or safetensors isn't installed.
      ResultsError: it can't be read or written.
    """
    _safetensors()
    with files.one_line(folder):
        is_used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_used:
        raise ConfigError(
            f"export: {folder} exists and isn't an empty folder; a new or empty folder "
            "is accepted"
        )


def write(folder: Path, trained: Trained, *, run: Path, contents: Contents) -> None:
    """Writes the files of an export; makes the folder.

    Args:
      folder: new or empty.
      trained: from `trained.load`.
      run: folder of the run, whose record is copied.
      contents: of the model card.

    Raises:
      ConfigError: as `check`.
      ResultsError: a file can't be read or written.
    """
    check(folder)
    arrays = {name: np.asarray(x) for name, x in _named(trained.state).items()}
    data = _safetensors().save(arrays, metadata={"format": "np"})
    digests = {_WEIGHTS: hashlib.sha256(data).hexdigest()}
    record = records.read(run)
    record[_KEY] = {"seed": trained.seed, "files": digests}
    with files.one_line(folder):
        disk.make_folder(folder)
    files.write_bytes(folder / _WEIGHTS, data)
    if contents.film is not None:
        files.write_bytes(folder / _FILM, contents.film)
    files.write_text(folder / "README.md", card(trained, record, contents))
    files.write_json(folder / records.NAME, record)


def is_export(folder: Path) -> bool:
    """Whether a folder was exported, and isn't that of a run."""
    return disk.is_file(folder / _WEIGHTS)


def seed_of(folder: Path, record: Mapping[str, Any]) -> int:
    """The seed of an export.

    Raises:
      CheckpointError: the record doesn't name it.
    """
    export = record.get(_KEY)
    seed = export.get("seed") if isinstance(export, dict) else None
    if not isinstance(seed, int):
        raise CheckpointError(
            f"{folder / records.NAME}: names no exported seed; export the run again"
        )
    return seed


def read(folder: Path, record: Mapping[str, Any], shapes: Any) -> dict[str, np.ndarray]:
    """Reads the arrays of an export, after a check of their SHA-256.

    Args:
      folder: of the export.
      record: its `config.json`.
      shapes: a pytree of the leaves to read.

    Returns:
      Names, as from `states.named`, to `[1, ...]`. Missing ones are left out.

    Raises:
      CheckpointError: the file is damaged.
      ConfigError: safetensors isn't installed.
      ResultsError: the file can't be read.
    """
    path = folder / _WEIGHTS
    data = disk.read(path)
    expected = record[_KEY].get("files")
    digest = hashlib.sha256(data).hexdigest()
    if not isinstance(expected, dict) or expected.get(_WEIGHTS) != digest:
        raise CheckpointError(
            f"{path}: its SHA-256 isn't that of {records.NAME}; export the run again"
        )
    arrays = _safetensors().load(data)
    return {
        raw: arrays[name][None]
        for raw, name in zip(states.named(shapes), _named(shapes), strict=True)
        if name in arrays
    }


def card(trained: Trained, record: Mapping[str, Any], contents: Contents) -> str:
    """The model card: a head for Hugging Face, and what a reader wants to know.

    Args:
      trained: from `trained.load`.
      record: of the run.
      contents: what it says beside the settings.
    """
    settings, measured = record["config"], _measured(contents.returns)
    env, loss = settings["env"], grid.loss_label(trained.config)
    film = f"No film: {contents.no_film}."
    if contents.film is not None:
        film = f"[{_FILM}]({_FILM}) shows an episode."
    end = ""
    if trained.diverged_at is not None:
        end = f" It diverged at step {trained.diverged_at}; this is the state before."
    model = "no dynamics model (plain SAC)"
    if trained.dynamics is not None:
        size = ", ".join(map(str, trained.dynamics.config.hidden)) or "no"
        members = trained.dynamics.config.num_members
        model = f"an ensemble of {members} dynamics models (hidden layers: {size})"
    return _CARD.format(
        head=_head(env, loss, measured),
        title=contents.title,
        seed=trained.seed,
        env=env,
        model=model,
        steps=_steps(trained.env_steps, settings.get(datasets.KEY)),
        loss=loss,
        end=end,
        measured=measured,
        episodes=len(contents.returns),
        film=film,
    )


def _steps(count: int, data: Any) -> str:
    """What a policy was trained for; `data` is what its run recorded of its data."""
    if not isinstance(data, dict):
        return f"{count} environment steps"
    rows = f"{data.get('rows')} transitions of a data set"
    if data.get("offline"):
        return f"{count} steps of updates, on {rows} alone"
    return f"{count} environment steps, which followed {rows},"


def _head(env: str, loss: str, measured: str) -> str:
    """The metadata of a model card; a text of JSON is one of YAML."""
    learning = "reinforcement-learning"
    tags = [learning, f"deep-{learning}", "model-based-rl", "vagram_jax", env, loss]
    task = {"type": learning, "name": learning}
    metric = {"type": "mean_reward", "value": measured, "name": "mean_reward"}
    result = {
        "task": task,
        "dataset": {"name": env, "type": env},
        "metrics": [metric | {"verified": False}],
    }
    head = {
        "library_name": "vagram_jax",
        "pipeline_tag": learning,
        "tags": [*dict.fromkeys(tags)],
        "model-index": [{"name": loss, "results": [result]}],
    }
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())


def _measured(returns: Sequence[float]) -> str:
    return f"{np.mean(returns):.2f} +/- {np.std(returns):.2f}"


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by names with dots, in the order of `states.named`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def _safetensors() -> Any:
    try:
        from safetensors import numpy
    except ImportError as error:
        raise ConfigError(
            'export: safetensors isn\'t installed; pip install "vagram_jax[export]"'
        ) from error
    return numpy
