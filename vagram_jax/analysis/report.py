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
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from vagram_jax.analysis import (
    attachments,
    figures,
    grouping,
    maps,
    plots,
    stats,
    summary,
    sweeps,
    training,
    verdicts,
)
from vagram_jax.analysis.published import PublishedCurve
from vagram_jax.analysis.study import Study
from vagram_jax.storage import files, records
from vagram_jax.storage.files import ResultsError
from vagram_jax.storage.results import Run

_MEMORY = {
    "peak memory": "memory_mb",
    "peak memory of a device": "device_memory_mb",
}
_REVISION = re.compile(r"[0-9a-f]{40}")


def write_report(
    study: Study, against: Mapping[str, Sequence[PublishedCurve]] | None = None
) -> Path:
    """Writes `report.html`, its figures and `summary.json` into a study's folder.

    Runs without an evaluation are only listed. Any other PNG in the folder, such as the
    plot of a sweep, is shown too. Films that `vagram render` wrote are in the page as
    far as they are small.

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
    names = grouping.names(runs)
    effects, problems = _draw(study, against)
    sentences = _verdict(study)
    content = {"verdict": sentences, "runs": study.summaries}
    files.write_json(folder / "summary.json", content)
    page = template("report.html.jinja").render(
        title=folder.name,
        facts=_facts(study),
        verdict=sentences,
        result_groups=_result_groups(study, names),
        effect_rows=list(map(sweeps.effect_rows, effects)),
        notes=[*study.problems, *problems, *_notes(runs)],
        figures=attachments.figures(folder),
        films=attachments.films(folder, runs, names),
        **_costs(study.evaluated, names),
        seed_rows=_seed_rows(study.evaluated, names),
        metric_rows=_metric_rows(study.evaluated, names),
        origins=_origins(runs),
        **_settings(runs, names),
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def _draw(study: Study, against) -> tuple[list[Sequence[sweeps.Effect]], list[str]]:
    """Draws the figures.

    Returns:
      The effects of the axes on each environment, and a line for each figure that can't
      be drawn.
    """
    folder, runs, problems = study.folder.resolve(), study.evaluated, []
    try:
        plots.learning_curves(runs, folder / "learning_curves.png", against=against)
    except (ValueError, ArithmeticError) as error:
        raise ResultsError(f"{folder}: {error}") from None
    found: list[Sequence[sweeps.Effect]] = []
    if sweeps.is_sweep(runs):
        groups = _comparable(runs, study.summaries).values()
        found = [sweeps.effects(members, study.summaries) for members in groups]
    every = list(itertools.chain(*found))
    with_model = [run for run in runs if maps.num_dims(run)]
    draw: dict[str, Callable[[Path], Any]] = {
        "profiles.png": lambda _: study.draw_profiles(),
        "attention.png": lambda path: with_model and maps.attention(with_model, path),
        "effects.png": lambda path: every and sweeps.plot(every, path),
        "model.png": lambda path: training.model(runs, path),
        "agent.png": lambda path: training.agent(runs, path),
        "cost.png": lambda path: training.cost(runs, path),
    }
    for name, function in draw.items():
        try:
            function(folder / name)
        except (ValueError, ArithmeticError) as error:
            problems.append(files.printable(f"{name}: {error}"))
    return [effects for effects in found if effects], problems


def _comparable(
    runs: Sequence[Run], summaries: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, int], list[Run]]:
    """The runs of each environment and number of steps."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        row = summaries[run.name]
        groups.setdefault((row["env"], row["env_steps"]), []).append(run)
    return dict(sorted(groups.items()))


def _facts(study: Study) -> str:
    """One line on the size and the origin of a study."""
    runs, rows = study.evaluated, study.summaries.values()
    counts = [(len(runs), "run"), (sum(row["seeds"] for row in rows), "seed")]
    steps = sorted({row["env_steps"] for row in rows})
    started = min(str(run.record.get("started") or "-") for run in runs)
    revisions = {_short(run.record.get("revision")) for run in runs} - {"-"}
    facts = [
        ", ".join(sorted({row["env"] for row in rows})),
        ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts),
        f"{' to '.join(f'{x:,}' for x in {steps[0], steps[-1]})} steps each",
        f"started {_time(started)}" if started != "-" else "",
        f"revision {', '.join(sorted(revisions))}" if revisions else "",
    ]
    return " · ".join(filter(None, facts))


def _verdict(study: Study) -> list[str]:
    """The sentences of a study with a design of its own, or those of `verdict`."""
    names = grouping.names(study.evaluated)
    rows = {names[name]: row for name, row in study.summaries.items()}
    judged = (
        [study.comparisons(m) for m in study.design.methods] if study.record else []
    )
    if any(judged):
        sentences = []
        for comparisons in map(_with_display_names, filter(None, judged)):
            sentences.append(verdicts.overall(comparisons))
            sentences += map(verdicts.sentence, comparisons)
        return sentences + _cautions(rows)
    if len(rows) <= grouping.MAX_LINES:
        return verdict(rows)
    groups = _comparable(study.evaluated, study.summaries)
    sentences = []
    for (env, steps), members in groups.items():
        prefix = f"{env}, {steps} steps: " if len(groups) > 1 else ""
        group = {names[run.name]: study.summaries[run.name] for run in members}
        sentences += [prefix + sentence for sentence in _best(group)]
        for setting, runs in grouping.by_setting(members).items():
            where = f"{grouping.text(setting)}: " if setting else ""
            short = grouping.names(runs)
            part = {short[run.name]: study.summaries[run.name] for run in runs}
            sentences += [prefix + where + sentence for sentence in _comparisons(part)]
    return sentences + _cautions(rows)


def _with_display_names(
    comparisons: Sequence[verdicts.Comparison],
) -> list[verdicts.Comparison]:
    return [
        each._replace(
            method=figures.display_name(each.method),
            baseline=figures.display_name(each.baseline),
        )
        for each in comparisons
    ]


def _best(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences on the run with the best result among many."""
    rows = {name: row for name, row in summaries.items() if _is_comparable(row)}
    if len(rows) < 2:
        return []
    intervals = {
        n: stats.Interval(r["iqm"], r["low"], r["high"]) for n, r in rows.items()
    }
    best = max(intervals, key=lambda name: intervals[name].value)
    others = [name for name in intervals if name != best]
    beaten = sum(
        stats.compare(intervals[best], intervals[name]) == "above" for name in others
    )
    return [
        f"The best of {len(rows)} runs is {best}: "
        f"{summary.format_interval(intervals[best])}. It beats {beaten} of the other "
        f"{len(others)} (intervals don't overlap).",
        "The best of many is partly luck: train it again with new seeds before you "
        "trust its number.",
    ]


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


def _result_groups(study: Study, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """A table for each environment and number of steps, with the best run on top."""
    groups, tables = _comparable(study.evaluated, study.summaries), []
    for (env, steps), members in groups.items():
        axes = grouping.axes(members) if sweeps.is_sweep(members) else []
        rows = []
        for run in sweeps.best_first(members, study.summaries):
            labels = grouping.labels(run)
            labels["loss"] = figures.display_name(labels["loss"])
            own = [labels.get(axis, "-") for axis in axes] or [names[run.name]]
            rows.append([*own, *summary.cells(study.summaries[run.name])[:3]])
        columns = [*(axes or ["run"]), "IQM", "95% interval", "diverged"]
        title = f"{env}, {steps:,} steps"
        tables.append({"title": title, "columns": columns, "rows": rows})
    return tables


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    return notes + [f"{run.name}: no evaluation yet" for run in runs if not run.metrics]


def _costs(runs: Sequence[Run], names: Mapping[str, str]) -> dict[str, Any]:
    """Columns and rows of wall time and memory, without columns that are empty."""
    table = []
    for run in runs:
        clocks = {row["seed"]: row["wall_time_s"] for row in run.timing}
        seconds, last = sum(clocks.values()), max(r["env_steps"] for r in run.metrics)
        steps = last * len({row["seed"] for row in run.metrics})
        row = {"run": names[run.name], "wall time": _clock(seconds)}
        row["steps per second"] = summary.format_number(
            steps / seconds if 0 < seconds < 1e9 else None
        )
        for title, column in _MEMORY.items():
            peak = max((each.get(column) or 0 for each in run.timing), default=0)
            row[title] = f"{peak / 1000:.2f} GB" if 0 < peak < 1e9 else "-"
        table.append(row)
    columns = [c for c in table[0] if any(row[c] != "-" for row in table)]
    rows = [[row[column] for column in columns] for row in table]
    return {"cost_columns": columns, "cost_rows": rows}


def _clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, such as `1:02:03`."""
    if not 0 < seconds < 1e9:  # unknown, or damaged
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _seed_rows(runs: Sequence[Run], names: Mapping[str, str]) -> list[list[Any]]:
    finals, rows = summary.finals_per_run(runs), []
    for run in runs:
        final = finals[run.name]
        for seed, value in zip(final.seeds, final.values, strict=True):
            evaluations = [row for row in run.metrics if row["seed"] == seed]
            diverged = final.diverged.get(int(seed), "no")
            last_step = max(row["env_steps"] for row in evaluations)
            number, count = summary.format_number(value), len(evaluations)
            rows.append([names[run.name], seed, number, diverged, count, last_step])
    return rows


def _metric_rows(runs: Sequence[Run], names: Mapping[str, str]) -> list[list[Any]]:
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
                rows.append([names[run.name], name, *shown, len(values)])
    return rows


def _settings(runs: Sequence[Run], names: Mapping[str, str]) -> dict[str, Any]:
    """Table rows of the settings that differ between runs, and of all others.

    A few runs have a column each; many have a row each.
    """
    differing = records.differences({run.name: run.config for run in runs})
    different = [
        [key, *(_text(v[run.name]) if run.name in v else "-" for run in runs)]
        for key, v in differing.items()
    ]
    columns = ["setting", *(names[run.name] for run in runs)]
    if len(runs) > grouping.MAX_LINES:
        columns, *different = map(list, zip(columns, *different, strict=True))
        columns[0] = "run"
    flat = records.flatten(runs[0].config)
    shared = [[key, _text(v)] for key, v in flat.items() if key not in differing]
    return {
        "different_columns": columns,
        "different_settings": different if differing else [],
        "shared_settings": shared,
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _origins(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The facts on all runs with the same device, command, revision and versions."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        versions = run.record.get("versions")
        versions = versions.items() if isinstance(versions, dict) else ()
        keys = ("command", "device", "revision")
        texts = [str(run.record.get(key) or "-") for key in keys]
        texts[-1] = _short(texts[-1])
        texts.append(", ".join(f"{package} {version}" for package, version in versions))
        groups.setdefault(tuple(texts), []).append(run)
    origins = []
    for texts, members in groups.items():
        started = min(str(run.record.get("started") or "-") for run in members)
        names = ("command", "device", "revision", "versions")
        facts = [*zip(names, texts, strict=True), ("first started", _time(started))]
        folders = ", ".join(run.name for run in members)
        origins.append({"runs": folders, "facts": [*facts, ("folders", folders)]})
    return origins


def _short(revision: Any) -> str:
    """A revision with 10 of its 40 digits."""
    return _REVISION.sub(lambda match: match[0][:10], str(revision or "-"))


def _time(started: str) -> str:
    """The start of a run without seconds; other text is returned unchanged."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00", started)
    return f"{match[1]} {match[2]} UTC" if match else started
