"""The report of a study: one HTML page with its verdict, tables and figures.

The page loads nothing and runs no script. The template escapes every text, and a
content policy allows no other style than its own. Equal files give equal pages.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from vagram_jax.analysis import figures, maps, plots, stats, summary
from vagram_jax.analysis.published import PublishedCurve
from vagram_jax.analysis.study import Study
from vagram_jax.storage import files, records, results
from vagram_jax.storage.files import ResultsError
from vagram_jax.storage.results import Run

_MAX_FIGURE_BYTES = 20_000_000  # browsers fail to open much larger pages
_HEADINGS = {"learning_curves.png": "Learning curves", "attention.png": "Attention"}


def write_report(
    study: Study, against: Mapping[str, Sequence[PublishedCurve]] | None = None
) -> Path:
    """Writes `report.html`, its figures and `summary.json` into a study's folder.

    Runs without an evaluation are only listed. Any other PNG in the folder, such as the
    plot of a sweep, is shown too.

    Args:
      study: the study.
      against: published curves to draw beside those of the runs, see
        `plots.learning_curves`.

    Returns:
      The path of `report.html`.

    Raises:
      ResultsError: a file can't be written, or the runs can't be compared.
    """
    folder, runs = study.folder.resolve(), study.runs
    try:
        curves = folder / "learning_curves.png"
        plots.learning_curves(study.evaluated, curves, against=against)
        if any(map(maps.num_dims, study.evaluated)):
            maps.attention(study.evaluated, folder / "attention.png")
    except ValueError as error:
        raise ResultsError(f"{folder}: {error}") from None
    sentences = verdict(study.summaries)
    content = {"verdict": sentences, "runs": study.summaries}
    files.write_json(folder / "summary.json", content)
    page = template("report.html.jinja").render(
        title=folder.name,
        verdict=sentences,
        result_rows=_result_rows(study.summaries),
        notes=[*study.problems, *_notes(runs)],
        figures=_figures(folder),
        films=_films(folder, runs),
        seed_rows=_seed_rows(study.evaluated),
        metric_rows=_metric_rows(study.evaluated),
        run_names=[run.name for run in runs],
        provenance_rows=_provenance_rows(runs),
        **_settings(runs),
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def verdict(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns sentences that say which runs differ significantly.

    Two runs are compared if they have the same environment, the same number of steps
    and at least 4 seeds each. They differ significantly if their intervals don't
    overlap, see `stats.compare`. The rule is the same for every loss.

    Args:
      summaries: as `summary.summarize` returns them.
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name, row in summaries.items():
        groups.setdefault((row["env"], row["env_steps"]), []).append(name)
    sentences = []
    for (env, steps), names in sorted(groups.items()):
        prefix = f"{env}, {steps} steps: " if len(groups) > 1 else ""
        group = {name: summaries[name] for name in names}
        sentences += [prefix + s for s in _comparisons(group) + _cautions(group)]
    envs = [env for env, _ in groups]
    sentences += [
        f"On {env}, runs with different numbers of steps aren't compared."
        for env in sorted({env for env in envs if envs.count(env) > 1})
    ]
    return sentences


def _comparisons(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    intervals = {
        name: stats.Interval(row["iqm"], row["low"], row["high"])
        for name, row in summaries.items()
        if _is_comparable(row)
    }
    outcomes = {
        (one, other): stats.compare(intervals[one], intervals[other])
        for one, other in itertools.permutations(intervals, 2)
    }
    if len(intervals) > 2 and set(outcomes.values()) == {"no significant difference"}:
        return [f"No two of {_join(intervals)} differ significantly."]
    sentences = []
    for one in intervals:
        worse = [name for name in intervals if outcomes.get((one, name)) == "above"]
        if worse:
            names = f"{_join([one])} beats {_join(worse)}"
            sentences.append(f"{names} (intervals don't overlap).")
    remaining = list(intervals)
    while remaining:
        one = remaining.pop(0)
        pairs = {name: outcomes[one, name] for name in remaining}
        similar = [name for name in pairs if pairs[name] == "no significant difference"]
        if len(similar) == 1:
            sentences.append(f"{_join([one, *similar])} don't differ significantly.")
        elif similar:
            names = f"{_join([one])} doesn't differ significantly from"
            sentences.append(f"{names} {_join(similar, 'or')}.")
    return sentences


def _cautions(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    sentences = [
        f"{row['diverged']} of {row['seeds']} seeds of {_join([name])} diverged and "
        "count with the lowest return on the environment."
        for name, row in summaries.items()
        if row["diverged"]
    ]
    sentences += [
        f"{_join([name])}: {' and '.join(row['warnings'])}. An untrained model never "
        "improved in a fit: check the loss and fit.learning_rate. Dropped transitions "
        "had numbers that aren't finite: check the environment."
        for name, row in summaries.items()
        if row["warnings"]
    ]
    if few := [name for name, row in summaries.items() if not _is_comparable(row)]:
        sentences.append(
            f"Not compared: {_join(few)}. A comparison needs at least "
            f"{stats.MIN_SEEDS_TO_COMPARE} seeds and a finite return."
        )
    if any(row["seeds"] < 10 for row in summaries.values()):
        sentences.append(
            "With fewer than 10 seeds a 95% interval is too narrow: with 4 seeds it "
            "contains the true value in about 87 of 100 studies."
        )
    return sentences


def _is_comparable(row: Mapping[str, Any]) -> bool:
    return row["seeds"] >= stats.MIN_SEEDS_TO_COMPARE and math.isfinite(row["low"])


def _join(names: Iterable[str], word: str = "and") -> str:
    """Joins the display names of methods: "A, B and C"."""
    names = list(map(figures.display_name, names))
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


@functools.cache
def template(name: str) -> jinja2.Template:
    """Returns a template of this folder, which escapes every text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sha256"] = _sha256
    return environment.get_template(name)


def _sha256(text: str) -> str:
    """Digest of a text as a content policy takes it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _result_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    rows = []
    for name, row in summaries.items():
        *numbers, seconds = summary.cells(row)
        rows.append([name, row["env"], *numbers, row["env_steps"], seconds])
    return rows


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    return notes + [f"{run.name}: no evaluation yet" for run in runs if not run.metrics]


def _figures(folder: Path) -> list[dict[str, str]]:
    """Heading and base64 data of each PNG, the figures of this module first."""
    names = [*_HEADINGS, *sorted({p.name for p in folder.glob("*.png")} - {*_HEADINGS})]
    shown = []
    for path in (folder / name for name in names):
        if not path.is_file() or path.is_symlink():
            continue
        if path.stat().st_size > _MAX_FIGURE_BYTES:
            continue
        data = path.read_bytes()
        if data.startswith(b"\x89PNG\r\n"):
            heading = _HEADINGS.get(path.name, path.stem.replace("_", " "))
            encoded = base64.b64encode(data).decode()
            shown.append({"heading": heading, "data": encoded})
    return shown


def _films(folder: Path, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The films that `vagram render` wrote into the folders of the runs."""
    return [
        {"run": run.name, "file": file, "seed": seed, "format": file.split(".")[-1]}
        for run in runs
        for seed, file in results.pictures(folder / run.name)
    ]


def _seed_rows(runs: Sequence[Run]) -> list[list[Any]]:
    finals, rows = summary.finals_per_run(runs), []
    for run in runs:
        final = finals[run.name]
        for seed, value in zip(final.seeds, final.values, strict=True):
            evaluations = [row for row in run.metrics if row["seed"] == seed]
            diverged = final.diverged.get(int(seed), "no")
            last_step = max(row["env_steps"] for row in evaluations)
            number = summary.format_number(value)
            rows.append([run.name, seed, number, diverged, len(evaluations), last_step])
    return rows


def _metric_rows(runs: Sequence[Run]) -> list[list[Any]]:
    """The environments' own metrics, over the last evaluations of the seeds."""
    rows = []
    for run in runs:
        ordered = sorted(run.metrics, key=lambda row: row["env_steps"])
        last = {row["seed"]: row for row in ordered}.values()
        for name in (name for name in ordered[0] if name.startswith("env/")):
            cells = [row[name] for row in last if isinstance(row[name], int | float)]
            values = [value for value in cells if math.isfinite(value)]
            if values:
                numbers = (sum(values) / len(values), min(values), max(values))
                shown = map(summary.format_number, numbers)
                rows.append([run.name, name, *shown, len(values)])
    return rows


def _settings(runs: Sequence[Run]) -> dict[str, list[list[str]]]:
    """Table rows of the settings that differ between runs, and of all others."""
    differing = records.differences({run.name: run.config for run in runs})
    different = [
        [key, *(_text(v[run.name]) if run.name in v else "-" for run in runs)]
        for key, v in differing.items()
    ]
    flat = records.flatten(runs[0].config)
    shared = [[key, _text(v)] for key, v in flat.items() if key not in differing]
    return {"different_settings": different, "shared_settings": shared}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _provenance_rows(runs: Sequence[Run]) -> list[list[str]]:
    """One row for all runs with the same device, command, revision and versions."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        versions = run.record.get("versions")
        versions = versions.items() if isinstance(versions, dict) else ()
        versions = ", ".join(f"{package} {version}" for package, version in versions)
        keys = ("device", "command", "revision")
        origin = (*(str(run.record.get(key) or "-") for key in keys), versions)
        groups.setdefault(origin, []).append(run)
    return [
        [
            ", ".join(run.name for run in members),
            min(str(run.record.get("started") or "-") for run in members),
            *origin,
        ]
        for origin, members in groups.items()
    ]
