"""Writes what a run has trained as a model repository, or its replay buffer.

    vagram export results/hopper/vagram --to=hopper-vagram
    vagram export results/hopper/vagram --replay=hopper.npz --seed=1

`--to` names a new or empty folder, which becomes a repository such as Hugging Face
expects. It gets the arrays as `model.safetensors`, the settings as `config.json`, and a
model card with the return over `--episodes` episodes, which is measured now. With the
extra `video`, and a task that can be drawn, a film is added as `replay.mp4`.
`vagram_jax.load`, `render` and `inspect` take that folder like a run. This needs the
extra `export`. The command imports the code of the run's environment: export only runs
of people whom you trust.

`--replay` names a new file for `vagram train --data`. It gets the real transitions of
the seed, the oldest first, in the units of the environment.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from vagram_jax import evaluate
from vagram_jax.cli import flags, loading
from vagram_jax.config import ConfigError
from vagram_jax.render import film
from vagram_jax.run import datasets, exports, model_card, trained
from vagram_jax.run.trained import Trained
from vagram_jax.storage import disk, files, records

TO = flags.DEFINE_string("to", None, "The folder to write, new or empty.")
REPLAY = flags.DEFINE_string(
    "replay", None, "The .npz file to write the replay buffer to, new."
)


def main(names: list[str]) -> int:
    """Writes the folder or the file and returns the exit status.

    Raises:
      ConfigError: not one run, none or both of `--to` and `--replay`, what one of them
        names exists, or a package is missing.
    """
    run = loading.one_run("export", names)
    loading.check_ranges()
    if REPLAY.value is not None:
        return _export_replay(run)
    if not TO.value:
        raise ConfigError(
            "--to=; a new or empty folder is accepted; or --replay=FILE.npz for the "
            "replay buffer"
        )
    folder = Path(TO.value).resolve()
    exports.check(folder)
    files.check_writable(folder)
    loaded = loading.load(run)
    print(loading.describe(run, loaded), flush=True)
    returns = _returns(loaded)
    print(f"return {np.mean(returns):.6g} over {len(returns)} episodes", flush=True)
    data, reason = _film(loaded)
    record = records.read(Path(run).resolve())
    title = loading.title(run)
    card = model_card.text(loaded, record, title=title, returns=returns, no_film=reason)
    exports.write(
        folder, loaded.state, seed=loaded.seed, record=record, card=card, film=data
    )
    print(f"{TO.value}: " + (f"no film: {reason}" if reason else "with a film"))
    return 0


def _export_replay(run: str) -> int:
    """Writes the replay buffer of the seed."""
    path = Path(REPLAY.value or "").resolve()
    if TO.value is not None:
        raise ConfigError("--to and --replay exclude each other; leave one out")
    exists = path.suffix == ".npz" and path.exists()
    if path.suffix != ".npz" or exists:
        reason = "it exists; " if exists else ""
        raise ConfigError(f"--replay={REPLAY.value}; {reason}a new .npz is accepted")
    files.check_writable(path.parent)
    rows = trained.load_transitions(run, loading.SEED.value, report=loading.warn)
    with files.one_line(path.parent):
        disk.make_folder(path.parent)
    datasets.save(path, rows)
    print(f"{REPLAY.value}: {rows.reward.shape[0]} transitions of {loading.title(run)}")
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
