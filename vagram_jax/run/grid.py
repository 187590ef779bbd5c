"""The runs of a study: their specifications, names and groups that share a program."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from vagram_jax import config, envs, losses, mbpo, schedules
from vagram_jax.envs import EnvConfig
from vagram_jax.mbpo import MBPOConfig
from vagram_jax.run import datasets
from vagram_jax.run.datasets import Dataset
from vagram_jax.run.loop import RunConfig
from vagram_jax.storage import checkpoint

RAW_TARGETS = {
    "dynamics.normalize_state": "false",
    "dynamics.normalize_reward": "false",
}
"""The settings of a model whose targets are not normalized."""

VARIANTS: Mapping[str, Mapping[str, str]] = {
    "mle_raw": {"loss": "mle"} | RAW_TARGETS,
    "mse_raw": {"loss": "mse"} | RAW_TARGETS,
}
"""Baselines that are a loss with settings of their own, by name."""

# A value, or several in parentheses.
_VALUE = re.compile(r"\([^()]*\)|[^,()]+")


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One run of a study.

    Attributes:
      name: name of its folder.
      labels: what tells it from the other runs of the study, by column of a table.
      env_config: the task.
      algorithm: the algorithm.
      run_config: length, seeds and evaluations.
      data: what all seeds start from, or None.
    """

    name: str
    labels: Mapping[str, str]
    env_config: EnvConfig
    algorithm: MBPOConfig
    run_config: RunConfig
    data: Dataset | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All settings in one namespace, as in a config file, and those of the data."""
        configs = (envs.resolved(self.env_config), self.algorithm, self.run_config)
        env, algorithm, run = map(config.to_dict, configs)
        data = {} if self.data is None else {datasets.KEY: self.data.settings}
        return env | algorithm | run | data


def make_spec(
    configs: tuple[EnvConfig, MBPOConfig, RunConfig],
    labels: Mapping[str, str],
    data: Dataset | None = None,
) -> RunSpec:
    """The specification of a run, which is named after its labels.

    Args:
      configs: the task, the algorithm and the run. The loss "sac" or "none" means plain
        SAC without a model.
      labels: what tells the run from the others of its study.
      data: what the run starts from, in place of random steps.

    Returns:
      The specification.
    """
    env_config, algorithm, run_config = configs
    if algorithm.loss in ("sac", mbpo.NO_MODEL):
        algorithm = with_loss(algorithm, mbpo.NO_MODEL)
    if data is not None:
        algorithm = algorithm.replace(warmup_steps=0)
    name = run_name(labels)
    return RunSpec(name, labels, env_config, algorithm, run_config, data)


def with_loss(algorithm: MBPOConfig, loss: str) -> MBPOConfig:
    """Returns the algorithm with another loss; "sac" or "none" means plain SAC.

    Settings that the new loss doesn't read get their default values, so that one config
    serves for a comparison of losses.

    Raises:
      ConfigError: the loss is unknown.
    """
    reads: tuple[str, ...] = ()
    if loss in ("sac", mbpo.NO_MODEL):
        only_real = schedules.constant(1.0)
        algorithm = algorithm.replace(loss=mbpo.NO_MODEL, real_fraction=only_real)
    else:
        algorithm = algorithm.replace(loss=loss)
        reads = losses.get(loss, also=("sac",)).reads_config
    unread = [name for name in ("gradients", "weights") if name not in reads]
    defaults = {name: type(getattr(algorithm, name))() for name in unread}
    return algorithm.replace(**defaults)


def loss_label(algorithm: MBPOConfig) -> str:
    """The name of an algorithm's loss; "sac" without a model."""
    return "sac" if algorithm.loss == mbpo.NO_MODEL else algorithm.loss


def study_name(env_config: EnvConfig) -> str:
    """The default name of a study: library, task and number of distractors."""
    library, name = env_config.env.partition(":")[0], env_config.env.rpartition(":")[2]
    if library in envs.LIBRARIES:
        name = re.sub(r"[^A-Za-z0-9_.-]+", ".", f"{library}-{name}")
    return f"{name}-{env_config.distractors}" if env_config.distractors else name


def run_name(labels: Mapping[str, str]) -> str:
    """The name of a run, such as `vagram_discount-0.99`, for `results.check_name`."""
    parts = [
        text if key == "loss" else f"{key.rpartition('.')[2]}-{text}"
        for key, text in labels.items()
    ]
    name = re.sub(r"[^A-Za-z0-9_.-]+", ".", "_".join(parts)).replace("-.", "-")
    name = name.strip(".-")
    if len(name) <= 64:
        return name
    # The digest makes shortened names unique.
    digest = hashlib.sha256(json.dumps(dict(labels)).encode()).hexdigest()[:8]
    return f"{name[:55]}-{digest}"


def values(text: str) -> list[str]:
    """The values of a list such as `vagram,mle`, where a tuple is written (16,16).

    It is empty if the text is no list.
    """
    rest = _VALUE.sub("", text).replace(",", "").strip()
    return [] if rest else [value.strip() for value in _VALUE.findall(text)]


def cell(text: str) -> str | int | float:
    """A label as a cell of a table: a number if it is one."""
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


def check_distinct(specs: Sequence[RunSpec]) -> None:
    """Checks that no run is trained twice, which would count its seeds twice.

    Raises:
      ConfigError: two runs have the same settings, such as the losses "none" and "sac",
        or the discounts 0.9 and 0.90.
    """
    names: dict[str, str] = {}
    for spec in specs:
        settings = json.dumps(spec.settings, sort_keys=True)
        if settings in names:
            raise config.ConfigError(
                f"runs {names[settings]} and {spec.name}: have the same settings; "
                "leave one of them out"
            )
        names[settings] = spec.name


def by_program(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs in an order in which those that share a program are neighbors."""
    keys = [_program_key(spec) for spec in specs]
    return sorted(specs, key=lambda spec: keys.index(_program_key(spec)))


def groups(
    specs: Sequence[RunSpec], study: Path, *, resume: bool
) -> list[list[RunSpec]]:
    """Groups the runs that share a program.

    Args:
      specs: checked runs.
      study: the folder of the study.
      resume: also group by the latest checkpoint, since lanes advance together.

    Returns:
      Runs that differ only in numbers and start at the same step, in order.
    """
    by_key: dict[Hashable, list[RunSpec]] = {}
    for spec in specs:
        step = max(checkpoint.steps(study / spec.name), default=-1) if resume else -1
        by_key.setdefault((_program_key(spec), step), []).append(spec)
    return list(by_key.values())


def _program_key(spec: RunSpec) -> Hashable:
    """What runs have in common that share a program: all but the traced numbers."""
    structure = jax.tree.structure(spec.algorithm)
    return *shared_settings(spec), structure


def shared_settings(spec: RunSpec) -> tuple[str, str, str]:
    """The task, the run config and the data of a run as text."""
    data = json.dumps(spec.settings.get(datasets.KEY))
    return as_text(spec.env_config), as_text(spec.run_config), data


def as_text(one: Any) -> str:
    """A config as text, the same for equal configs."""
    return json.dumps(config.to_dict(one), sort_keys=True)
