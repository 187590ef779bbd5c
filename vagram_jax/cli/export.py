"""Writes what a run has trained as a model repository, such as Hugging Face expects.

    vagram export results/hopper/vagram --to=hopper-vagram

`--to` names a new or empty folder. It gets the arrays as `model.safetensors`, the
settings as `config.json`, and a model card with the return over `--episodes` episodes,
which is measured now. With the extra `video`, and a task that can be drawn, a film is
added as `replay.mp4`. `vagram_jax.load`, `render` and `inspect` take that folder like a
run. This needs the extra `export`. The command imports the code of the run's
environment: export only runs of people whom you trust.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from vagram_jax import evaluate
from vagram_jax.cli import flags, loading
from vagram_jax.config import ConfigError
from vagram_jax.render import film
from vagram_jax.run import exports
from vagram_jax.run.exports import Contents
from vagram_jax.run.trained import Trained
from vagram_jax.storage import files

TO = flags.DEFINE_string("to", None, "The folder to write, new or empty.")


def main(names: list[str]) -> int:
    """Measures the return, writes the folder and returns the exit status.

    Raises:
      ConfigError: not one run, `--to` is missing or not empty, or a package is missing.
    """
    run = loading.one_run("export", names)
    loading.check_ranges()
    if not TO.value:
        raise ConfigError("--to=; a new or empty folder is accepted")
    folder = Path(TO.value).resolve()
    exports.check(folder)
    files.check_writable(folder)
    loaded = loading.load(run)
    print(loading.describe(run, loaded), flush=True)
    returns = _returns(loaded)
    print(f"return {np.mean(returns):.6g} over {len(returns)} episodes", flush=True)
    data, reason = _film(loaded)
    contents = Contents(loading.title(run), returns, data, reason)
    exports.write(folder, loaded, run=Path(run).resolve(), contents=contents)
    print(f"{TO.value}: " + (f"no film: {reason}" if reason else "with a film"))
    return 0


def _returns(loaded: Trained) -> list[float]:
    key, count = jax.random.key(loading.EPISODE_SEED.value), loading.num_episodes(10)
    returns, _, _ = jax.jit(
        lambda key: evaluate.returns(
            key, lambda key, obs: loaded.act(obs), env=loaded.env, num_episodes=count
        )
    )(key)
    return np.asarray(returns).tolist()


def _film(loaded: Trained) -> tuple[bytes | None, str]:
    """A film of one episode, or None and the reason in words."""
    key = jax.random.key(loading.EPISODE_SEED.value)
    try:
        film.check(loaded.env, kind="mp4")
        played = [*film.play(key, loaded, num_episodes=1)]
        return film.picture(loaded.env, played, kind="mp4").data, ""
    except film.PictureError as error:
        return None, str(error)
