"""Writes the model card of an export: metadata for Hugging Face, and a text to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vagram_jax.run import datasets, exports, grid
from vagram_jax.run.trained import Trained

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


def text(
    trained: Trained,
    record: Mapping[str, Any],
    *,
    title: str,
    returns: Sequence[float],
    no_film: str = "",
) -> str:
    """Returns the model card.

    Args:
      trained: from `trained.load`.
      record: the `config.json` of the run.
      title: study and run, such as `"hopper/vagram"`.
      returns: the measured return of each episode.
      no_film: why there is no film; empty if there is one.
    """
    settings, measured = record["config"], _measured(returns)
    env, loss = settings["env"], grid.loss_label(trained.config)
    film = f"[{exports.FILM}]({exports.FILM}) shows an episode."
    if no_film:
        film = f"No film: {no_film}."
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
        title=title,
        seed=trained.seed,
        env=env,
        model=model,
        steps=_steps(trained.env_steps, settings.get(datasets.KEY)),
        loss=loss,
        end=end,
        measured=measured,
        episodes=len(returns),
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
