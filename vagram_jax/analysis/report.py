"""The page that a person reads: one HTML file with everything in it.

Comes in: the folder of a study. Goes out: `report.html`, its pictures and the study's
`summary.json`, beside the runs. The page loads nothing from anywhere and runs no
script; whatever comes from a file is escaped. The same files give the same page.

What the page says in words follows from the numbers by one rule for every loss, which
knows no loss by name.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import math
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vagram_jax.analysis import maps, plots, stats, summary
from vagram_jax.storage import files, results
from vagram_jax.storage.files import ResultsError
from vagram_jax.storage.results import Run

_MAX_PICTURE = 20_000_000  # bytes; a page with more than that would not open


def write_report(
    folder: str | os.PathLike,
    *,
    title: str | None = None,
    dim_names: Sequence[str] | None = None,
    resamples: int = 10_000,
) -> Path:
    """Read a study and write its page, its pictures and its `summary.json`.

    Runs without an evaluation are named and otherwise left out. Any other PNG in the
    folder, such as a sweep's, is put on the page too.

    Args:
      folder: of the study.
      title: of the page; the folder's name if None.
      dim_names: a name for each state dimension.
      resamples: of each bootstrap.

    Returns:
      The path of `report.html`.

    Raises:
      ResultsError: the study can't be read, has nothing to report, or can't be
        written.
    """
    folder = Path(folder).resolve()
    runs = results.read_runs(folder)
    evaluated = [run for run in runs if run.metrics]
    if not evaluated:
        raise ResultsError(f"{folder}: no run has an evaluation yet")
    try:
        summaries = summary.summarise(evaluated, resamples=resamples)
        plots.learning_curves(evaluated, folder / "learning_curves.png")
        if any(map(maps.num_dims, evaluated)):
            maps.attention(evaluated, folder / "attention.png", dim_names=dim_names)
    except ValueError as error:
        raise ResultsError(f"{folder}: {error}") from None
    sentences = verdict(summaries)
    files.write_json(
        folder / "summary.json",
        {"verdict": sentences, "resamples": resamples, "runs": summaries},
    )
    page = _page(folder, title or folder.name, runs, summaries)
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def verdict(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the numbers say, in sentences; by one rule for every loss.

    Two runs on one environment, with the same number of steps and at least 4 seeds
    each, are told apart if their intervals do not overlap. Two alike losses are then
    told apart in 3 of 100 studies with 4 seeds, in 1 of 100 with 10 (measured).

    Args:
      summaries: from `summary.summarise`.

    Returns:
      Sentences, in the order in which they should be read.
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name, row in summaries.items():
        groups.setdefault((row["env"], row["env_steps"]), []).append(name)
    sentences = []
    for (env, steps), names in sorted(groups.items()):
        where = f"{env}, {steps} steps: " if len(groups) > 1 else ""
        said = [*_comparisons(names, summaries), *_cautions(names, summaries)]
        sentences += [where + sentence for sentence in said]
    envs = [env for env, _ in groups]
    sentences += [
        f"On {env}, runs with different numbers of steps are not compared."
        for env in sorted({env for env in envs if envs.count(env) > 1})
    ]
    return sentences


def _comparisons(names: list[str], summaries: Mapping[str, Any]) -> list[str]:
    judged = [name for name in names if _can_judge(summaries[name])]
    pairs = list(itertools.permutations(judged, 2))
    above = {
        (one, other)
        for one, other in pairs
        if stats.compare(_interval(summaries[one]), _interval(summaries[other]))
        == "above"
    }
    sentences = []
    for one in judged:
        if lower := [other for other in judged if (one, other) in above]:
            sentences.append(f"{one} is above {_list(lower)}.")
    level = [
        f"{one} and {other}"
        for one, other in itertools.combinations(judged, 2)
        if not above & {(one, other), (other, one)}
    ]
    if level and not above and len(judged) > 2:
        sentences.append(f"No two of {_list(judged)} are told apart.")
    elif level:
        sentences.append(f"Not told apart: {'; '.join(level)}.")
    return sentences


def _cautions(names: list[str], summaries: Mapping[str, Any]) -> list[str]:
    sentences = [
        f"Diverged seeds of {name}: {summaries[name]['diverged']} of "
        f"{summaries[name]['seeds']}. They count with the lowest return of the study."
        for name in names
        if summaries[name]["diverged"]
    ]
    if unjudged := [name for name in names if not _can_judge(summaries[name])]:
        sentences.append(
            f"Not judged, as it takes {stats.MIN_SEEDS_TO_COMPARE} seeds with a return: "
            f"{_list(unjudged)}."
        )
    if any(summaries[name]["seeds"] < 10 for name in names):
        sentences.append(
            "With fewer than 10 seeds a 95% interval is too short: one from 4 seeds "
            "holds the true value in about 87 of 100 studies."
        )
    return sentences


def _can_judge(row: Mapping[str, Any]) -> bool:
    return row["seeds"] >= stats.MIN_SEEDS_TO_COMPARE and math.isfinite(row["low"])


def _interval(row: Mapping[str, Any]) -> stats.Interval:
    return stats.Interval(row["iqm"], row["low"], row["high"])


def _list(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _page(
    folder: Path, title: str, runs: Sequence[Run], summaries: Mapping[str, Any]
) -> str:
    # Only this very style is allowed by the page's policy, so none can be injected.
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    sections = [
        _section(
            "What the numbers say", _items(verdict(summaries)) + _result(summaries)
        ),
        *_pictures(folder),
        *_policies(folder, runs),
        _section("Every seed", _seeds(runs)),
        _section("What differs between the runs", _differences(runs)),
        _section("What the runs share", _shared(runs)),
        _section("How it was made", _provenance(runs)),
    ]
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    notes += [f"{run.name}: no evaluation yet" for run in runs if not run.metrics]
    if notes:
        sections.insert(1, _section("What to know of the files", _items(notes)))
    return _PAGE.substitute(
        title=html.escape(title),
        digest=digest,
        style=_STYLE,
        sections="\n".join(sections),
    )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{html.escape(heading)}</h2>\n{content}\n</section>"


def _items(sentences: Sequence[str]) -> str:
    lines = "\n".join(f"<li>{html.escape(said)}</li>" for said in sentences)
    return f"<ul>\n{lines}\n</ul>"


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], texts: int = 1
) -> str:
    """A table whose first `texts` columns are text and whose others are numbers."""

    def line(cells, tag):
        kinds = ["text"] * texts + ["number"] * (len(cells) - texts)
        return "".join(
            f'<{tag} class="{kind}">{html.escape(str(cell))}</{tag}>'
            for kind, cell in zip(kinds, cells, strict=True)
        )

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{line(columns, "th")}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _result(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, row in summaries.items():
        *numbers, seconds = summary.cells(row)
        rows.append([name, row["env"], *numbers, row["env_steps"], seconds])
    columns = ["run", "environment", "IQM", "95% interval", "diverged"]
    columns += ["environment steps", "seconds"]
    caption = (
        "IQM: of the final returns, the mean of the middle half of the seeds. A final "
        "return is the mean over a seed's evaluations in the last tenth of its steps. "
        "Interval: percentile bootstrap over seeds. Seconds: wall time of all seeds."
    )
    return f'{_table(columns, rows, texts=2)}\n<p class="note">{caption}</p>'


def _pictures(folder: Path) -> list[str]:
    known = {"learning_curves.png": "Learning curves", "attention.png": "Attention"}
    names = [*known, *sorted({p.name for p in folder.glob("*.png")} - set(known))]
    sections = []
    for path in (folder / name for name in names):
        if (
            not path.is_file()
            or path.is_symlink()
            or path.stat().st_size > _MAX_PICTURE
        ):
            continue
        data = path.read_bytes()
        if data.startswith(b"\x89PNG\r\n"):
            heading = known.get(path.name, path.stem.replace("_", " "))
            source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            picture = f'<img alt="{html.escape(heading)}" src="{source}">'
            sections.append(_section(heading, picture))
    return sections


def _policies(folder: Path, runs: Sequence[Run]) -> list[str]:
    """Links to what `vagram_jax.cli.render` made of the runs, if it did."""
    links = [
        f'<li><a href="{html.escape(f"{run.name}/{name}")}">{html.escape(run.name)}, '
        f"seed {seed}</a> ({name.rpartition('.')[2]})</li>"
        for run in runs
        for seed, name in results.pictures(folder / run.name)
    ]
    if not links:
        return []
    items = "\n".join(links)
    return [_section("Policies at work", f"<ul>\n{items}\n</ul>")]


def _seeds(runs: Sequence[Run]) -> str:
    evaluated = [run for run in runs if run.metrics]
    floors = summary.floor_per_env(evaluated)
    rows = []
    for run in evaluated:
        finals = summary.final_returns(run.metrics, floor=floors[summary.env_of(run)])
        for seed, value in zip(finals.seeds, finals.values, strict=True):
            mine = [row for row in run.metrics if row["seed"] == seed]
            rows.append(
                [
                    run.name,
                    seed,
                    summary.format_number(value),
                    finals.diverged.get(int(seed), "no"),
                    len(mine),
                    max(row["env_steps"] for row in mine),
                ]
            )
    columns = ["run", "seed", "final return", "diverged at step", "evaluations"]
    return _table([*columns, "last step"], rows)


def _differences(runs: Sequence[Run]) -> str:
    found = results.differences({run.name: run.config for run in runs})
    if not found:
        return "<p>Nothing.</p>"
    rows = [
        [
            key,
            *(_value(values[run.name]) if run.name in values else "-" for run in runs),
        ]
        for key, values in found.items()
    ]
    return _table(["setting", *(run.name for run in runs)], rows)


def _shared(runs: Sequence[Run]) -> str:
    differing = results.differences({run.name: run.config for run in runs})
    flat = results.flatten(runs[0].config)
    rows = [[key, _value(v)] for key, v in flat.items() if key not in differing]
    table = _table(["setting", "value"], rows, texts=2)
    return f"<details><summary>{len(rows)} settings</summary>\n{table}\n</details>"


def _provenance(runs: Sequence[Run]) -> str:
    """One row for all runs that were made in the same way."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        versions = run.record.get("versions")
        versions = versions.items() if isinstance(versions, dict) else ()
        way = [str(run.record.get(k) or "-") for k in ("device", "command", "revision")]
        way.append(", ".join(f"{package} {version}" for package, version in versions))
        groups.setdefault(tuple(way), []).append(run)
    rows = [
        [
            ", ".join(run.name for run in made),
            min(str(run.record.get("started") or "-") for run in made),
            *way,
        ]
        for way, made in groups.items()
    ]
    columns = ["runs", "first started", "device", "command", "revision", "versions"]
    return _table(columns, rows, texts=len(columns))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --back: #ffffff; --stripe: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --soft: #9aa4af;
  --line: #3a424c; --back: #14181d; --stripe: #1b2027; } }
body { margin: 2rem auto; padding: 0 1.25rem; max-width: 60rem; color: var(--text);
  background: var(--back); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; min-width: 50%; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
tbody tr:nth-child(even) { background: var(--stripe); }
.text { text-align: left; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.note { color: var(--soft); font-size: .85rem; max-width: 48rem; }
img { width: 100%; height: auto; background: #ffffff; border-radius: 6px;
  padding: .5rem; box-sizing: border-box; border: 1px solid var(--line); }
summary { cursor: pointer; }
@media print { details > * { display: block; } }
"""

_PAGE = string.Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src 'sha256-$digest'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
$sections
</body>
</html>
"""
)
