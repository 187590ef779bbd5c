"""Runs a study of the paper's claims: trains its runs and writes tables and a verdict.

    vagram study capacity --preset=quick

`quick` takes minutes on two cores, or up to an hour with Hopper; `long` trains MuJoCo's
tasks until they are learned, which takes hours on two cores; `full` needs an
accelerator. The files are in `results/<study>-<preset>`. The same command again resumes
an interrupted study. A study is a module of `experiments/studies` in a checkout, or a
file of your own, such as `my_study.py`.

    vagram study                      lists the studies of the checkout
    vagram study --write_findings     rewrites docs/findings.md from the results
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from types import ModuleType

from vagram_jax import user_code
from vagram_jax.analysis import stats
from vagram_jax.cli import flags, repository, train
from vagram_jax.storage import files, results

PRESET = flags.DEFINE_enum(
    "preset", "quick", ["quick", "long", "full"], "Size of the study."
)
SEEDS = flags.DEFINE_integer(
    "study_seeds", None, "Number of seeds of each run; default: the preset's."
)
FIRST_SEED = flags.DEFINE_integer(
    "first_seed", None, "First seed of each run; default: the preset's."
)
WRITE_FINDINGS = flags.DEFINE_bool(
    "write_findings", False, "Rewrite docs/findings.md from results/ and stop."
)


def main(names: list[str]) -> int:
    """Runs a study, or writes the findings, and returns the exit status.

    Raises:
      UsageError: there is no such study, or a number is out of range.
      ResultsError: the folder of the study can't be written.
    """
    if len(names) > (0 if WRITE_FINDINGS.value else 1):
        raise flags.UsageError(
            f"study {' '.join(names)}: one name, or none with --write_findings"
        )
    if WRITE_FINDINGS.value:
        for path in repository.load("experiments.findings").write():
            print(f"written: {path}")
        return 0
    if not names:
        studies = repository.load("experiments.studies").descriptions()
        for name, about in studies.items():
            print(f"{name:23}{about}")
        return 0
    study = _load(names[0])
    _check_preset(names[0], study)
    _check_seeds()
    name = train.study_name(f"{Path(names[0]).stem}-{PRESET.value}")
    root = Path(train.RESULTS.value).resolve()
    folder = root / results.check_name(name, what="study")
    with files.one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return study.run(
        PRESET.value,
        folder,
        # The seeds of most runs; the number decides how a CPU is split.
        options=train.session_options(SEEDS.value or 4),
        num_seeds=SEEDS.value,
        first_seed=FIRST_SEED.value,
    )


def _load(name: str) -> ModuleType:
    """The module of a study: of the checkout, or a user's file."""
    if name.endswith(".py"):
        return _load_file(Path(name))
    studies = repository.load("experiments.studies")
    known = studies.descriptions()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        hint += f"accepted: {', '.join(known)}, or a Python file"
        raise flags.UsageError(f"study {name}: unknown study; {hint}")
    return studies.load(name)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise flags.UsageError(f"study {path}: no such file; check the path")
    repository.add_to_path(Path.cwd())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # true for every .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # A user's file may fail in any way; the message names the file.
    except (Exception, SystemExit) as error:
        raise user_code.UserCodeError(
            f"study {path}: it raised {user_code.one_line(error)}; repair it"
        ) from error
    if not callable(getattr(module, "run", None)):
        raise flags.UsageError(
            f"study {path}: it has no function run; define run(preset, folder, *, "
            "options, num_seeds=None, first_seed=None)"
        )
    return module


def _check_preset(name: str, study: ModuleType) -> None:
    accepted = getattr(study, "PRESETS", ("quick", "full"))
    if PRESET.value not in accepted:
        raise flags.UsageError(
            f"--preset={PRESET.value}: the study {name} doesn't have it; accepted: "
            f"{', '.join(accepted)}"
        )


def _check_seeds() -> None:
    least = stats.MIN_SEEDS
    if SEEDS.value is not None and SEEDS.value < least:
        raise flags.UsageError(
            f"--study_seeds={SEEDS.value}; at least {least}: an interval needs them"
        )
    if FIRST_SEED.value is not None and FIRST_SEED.value < 0:
        raise flags.UsageError(f"--first_seed={FIRST_SEED.value}; at least 0")
