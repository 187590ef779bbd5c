"""A study: the final returns of the runs in one folder, and all that follows from them.

`Study.load` reads a folder once. Comparisons, verdict, tables and figures are methods
of the study that it returns, and `Study.write` writes them:

    finals.csv    a row per run and seed: labels, seed, final return, diverged
    table.csv     a row per setting and method: IQM, 95% interval, probabilities
    *.png         the final returns of each setting
    profiles.png  the share of seeds above each return, over all settings
    study.json    the verdict, the design and the record: command, versions, machine

The runs themselves may be deleted afterwards: `finals.csv` and `study.json` are enough
to load the study again.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vagram_jax.analysis import designs, plots, stats, summary, verdicts
from vagram_jax.analysis.designs import Design
from vagram_jax.analysis.stats import Interval
from vagram_jax.analysis.verdicts import Comparison, Label, Setting
from vagram_jax.storage import files, results
from vagram_jax.storage.files import ResultsError

_UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class Result:
    """The final returns of one run.

    Attributes:
      labels: columns to values. A run that lacks a column belongs to all of its values:
        plain SAC has no model, so one run serves for every width of the model.
      seeds: `[num_seeds]`.
      values: `[num_seeds]` final returns; a diverged seed has the lowest return of the
        study.
      diverged: `[num_seeds]`, whether the seed diverged.
      name: name of the run, empty if the run itself was not kept.
    """

    labels: Mapping[str, Label]
    seeds: np.ndarray
    values: np.ndarray
    diverged: np.ndarray
    name: str = ""

    @functools.cached_property
    def interval(self) -> Interval:
        """The IQM and its 95% interval, without ends for fewer than 3 seeds."""
        if _has_interval(self.values):
            return stats.interval({"": self.values})
        return _UNKNOWN._replace(value=float(stats.iqm(self.values)))


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs of one folder.

    Attributes:
      folder: the path of the folder.
      design: how the runs are compared.
      results: the final returns of each run.
      record: the content of `study.json`.
      runs: the runs themselves, also those without an evaluation; empty if only
        `finals.csv` was kept.
      problems: a line for each run that can't be read and is left out.
    """

    folder: Path
    design: Design
    results: Sequence[Result]
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runs: Sequence[results.Run] = ()
    problems: Sequence[str] = ()

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Study:
        """Reads the runs of a folder, or its `finals.csv` if the runs weren't kept.

        Args:
          folder: of the study; without a `study.json` the design is the default.

        Returns:
          The study.

        Raises:
          ResultsError: a file of the study is damaged, a run lacks the label that the
            design contrasts, or there is neither a run with an evaluation nor a
            `finals.csv`.
        """
        folder, problems = Path(folder).resolve(), []
        record: Mapping[str, Any] = {}
        if (folder / "study.json").exists():
            record = files.read_json(folder / "study.json")
        design = designs.from_record(folder / "study.json", record)
        has_runs = bool(results.run_folders(folder))
        if not has_runs and not (folder / "finals.csv").exists():
            raise ResultsError(
                f"{folder}: no run in it, and no finals.csv; a run is a folder with "
                "config.json"
            )
        runs = results.read_runs(folder, report=problems.append) if has_runs else []
        evaluated = [run for run in runs if run.metrics]
        if has_runs and not evaluated:
            reason = problems[0] if problems else "no run has an evaluation yet"
            raise ResultsError(f"{folder}: {reason}")
        if evaluated:
            all_results = _from_runs(folder, evaluated)
        else:
            all_results = _from_finals(folder, design)
        if not all(design.contrast in result.labels for result in all_results):
            raise ResultsError(f"{folder}: a run lacks the label {design.contrast!r}")
        ordered = _ordered(all_results, design)
        return cls(folder, design, ordered, record, runs, problems)

    @functools.cached_property
    def evaluated(self) -> list[results.Run]:
        """The runs that have an evaluation."""
        return [run for run in self.runs if run.metrics]

    @functools.cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """The `summary.summarize` of the runs, by name."""
        return summary.summarize(self.evaluated)

    @functools.cached_property
    def settings(self) -> dict[Setting, dict[str, Result]]:
        """The results in each setting, by the value of the contrast."""
        contrast = self.design.contrast
        columns = [c for c in _columns(self.results) if c != contrast]
        groups: dict[Setting, dict[str, Result]] = {}
        for result in self.results:
            if all(column in result.labels for column in columns):
                groups[tuple((c, result.labels[c]) for c in columns)] = {}
        for result in self.results:
            own = {(c, v) for c, v in result.labels.items() if c != contrast}
            for setting, by_name in groups.items():
                if own <= set(setting):
                    by_name[str(result.labels[contrast])] = result
        return groups

    def at(self, **labels: Label) -> dict[str, Result]:
        """The results in the one setting that has these labels.

        Args:
          **labels: columns to values; those that leave no choice may be left out.

        Returns:
          Values of the contrast to results.

        Raises:
          ValueError: no setting or several have these labels.
        """
        return self.settings[self._setting(labels)]

    def compare(
        self, method: str, baselines: Sequence[str] | None = None, **labels: Label
    ) -> Comparison:
        """Compares a method with the strongest of some baselines in one setting.

        The strongest is the one with the best IQM of these very seeds, which favors the
        baselines.

        Args:
          method: a value of the contrast.
          baselines: other values, those of the design by default. Values that were not
            trained in this setting are skipped.
          **labels: of the setting, as for `at`.

        Returns:
          The comparison.

        Raises:
          ValueError: no such setting, or neither method nor baseline was trained in it.
        """
        setting = self._setting(labels)
        by_name = self.settings[setting]
        names = self.design.baselines if baselines is None else baselines
        present = [name for name in names if name in by_name and name != method]
        if method not in by_name or not present:
            where = verdicts.setting_text(setting)
            raise ValueError(
                f"compare: {where}: method={method!r}, baselines={list(names)}; two "
                f"of {', '.join(sorted(by_name))} are accepted"
            )
        sign = 1.0 if self.design.higher_is_better else -1.0
        strongest = max(present, key=lambda name: sign * by_name[name].interval.value)
        ours, theirs = by_name[method], by_name[strongest]
        return Comparison(
            setting,
            method,
            strongest,
            ours.interval,
            theirs.interval,
            self.probability(ours, theirs),
            self.outcome(ours, theirs),
        )

    def comparisons(self, method: str) -> list[Comparison]:
        """Compares a method with the strongest baseline in every setting with both."""
        others = tuple(name for name in self.design.baselines if name != method)
        return [
            self.compare(method, others, **dict(setting))
            for setting, by_name in self.settings.items()
            if method in by_name and set(others) & set(by_name)
        ]

    def outcome(self, one: Result, other: Result) -> str:
        """Whether `one` is significantly better or worse, see `verdicts.outcome`."""
        higher = self.design.higher_is_better
        return verdicts.outcome(one.interval, other.interval, higher_is_better=higher)

    def probability(self, one: Result, other: Result) -> Interval:
        """The probability that a seed of `one` is better than a seed of `other`.

        Returned with its 95% interval; NaN for fewer than 3 seeds.
        """
        if not (_has_interval(one.values) and _has_interval(other.values)):
            return _UNKNOWN
        higher, lower = ({"": one.values}, {"": other.values})
        if not self.design.higher_is_better:
            higher, lower = lower, higher
        return stats.probability_of_improvement(higher, lower)

    def verdict(self) -> list[str]:
        """Sentences on every comparison of the methods with the strongest baseline."""
        sentences = []
        for method in self.design.methods:
            if comparisons := self.comparisons(method):
                sentences += map(verdicts.sentence, comparisons)
                sentences.append(verdicts.overall(comparisons))
        return sentences

    def table(self) -> list[dict[str, Any]]:
        """The rows of `table.csv`: every result in every setting.

        Returns:
          Rows with the labels, `iqm`, `low`, `high`, `seeds`, `diverged`, and for each
          method `p_<method>` with `_low` and `_high`: the probability that a seed of
          the method is better than a seed of this row.
        """
        methods = [
            method
            for method in self.design.methods
            if any(method in by_name for by_name in self.settings.values())
        ]
        rows = []
        for setting, by_name in self.settings.items():
            for name, result in by_name.items():
                contrast = self.design.contrast  # its values may be numbers
                row = dict(setting) | {contrast: result.labels[contrast]}
                row |= _cells(("iqm", "low", "high"), result.interval)
                row |= {"seeds": len(result.seeds)}
                row |= {"diverged": int(result.diverged.sum())}
                for method in methods:
                    chance = _UNKNOWN
                    if method in by_name and method != name:
                        chance = self.probability(by_name[method], result)
                    ends = (f"p_{method}", f"p_{method}_low", f"p_{method}_high")
                    row |= _cells(ends, chance)
                rows.append(row)
        return rows

    def finals(self) -> list[dict[str, Any]]:
        """The rows of `finals.csv`: every run and seed.

        Returns:
          Rows with the labels, `seed`, the metric of the design, and `diverged`.
        """
        return [row for result in self.results for row in self.seed_rows(result)]

    def seed_rows(self, result: Result) -> list[dict[str, Any]]:
        """The rows of `finals`, of one run."""
        labels = {x: result.labels.get(x) for x in _columns(self.results)}
        return [
            labels
            | {"seed": int(seed), self.design.metric: float(value)}
            | {"diverged": int(diverged)}
            for seed, value, diverged in zip(
                result.seeds, result.values, result.diverged, strict=True
            )
        ]

    def write(self, *, more: Sequence[str] = (), figures: bool = True) -> list[str]:
        """Writes tables, figures and `study.json` into the folder of the study.

        Args:
          more: sentences that are added to the verdict.
          figures: False writes no figure.

        Returns:
          The verdict.

        Raises:
          ResultsError: a file can't be written.
        """
        verdict = [*self.verdict(), *more]
        files.write_rows(self.folder / "finals.csv", self.finals())
        files.write_rows(self.folder / "table.csv", self.table())
        if figures:
            self._draw()
            if len(self.settings) > 1:
                self.draw_profiles()
        design = {"design": dataclasses.asdict(self.design)}
        record = dict(self.record) | {"verdict": verdict} | design
        files.write_json(self.folder / "study.json", record)
        return verdict

    def _setting(self, labels: Mapping[str, Label]) -> Setting:
        matching = [s for s in self.settings if set(labels.items()) <= set(s)]
        if len(matching) != 1:
            raise ValueError(
                f"study {self.folder.name}: labels={dict(labels)} select "
                f"{len(matching)} settings; labels of exactly one are accepted"
            )
        return matching[0]

    def _draw(self) -> None:
        """Draws one figure for each combination of the labels other than the axis."""
        axis = self.design.axis
        figures: dict[str, dict[str, dict[float, np.ndarray]]] = {}
        losses: dict[str, Label] = {}
        for setting, by_name in self.settings.items():
            others = [str(value) for column, value in setting if column != axis]
            title = "_".join(others) or "returns"
            points = figures.setdefault(title, {})
            losses[title] = dict(setting).get("loss", "")
            x = float(dict(setting)[axis]) if axis else 0.0
            for name, result in by_name.items():
                if _has_interval(result.values):
                    points.setdefault(name, {})[x] = result.values
        label = self.design.metric.replace("_", " ")
        for name, points in figures.items():
            path = self.folder / f"{name}.png"
            if axis:
                title = f"{label.capitalize()} against {axis}: {name}"
                plots.sweep(points, path, x_label=axis, y_label=label, title=title)
            else:
                rows = {method: by_x[0.0] for method, by_x in points.items()}
                loss = str(losses[name])
                plots.intervals(
                    rows,
                    path,
                    x_label=label,
                    title=name,
                    reference=self.design.methods[0],
                    methods=dict.fromkeys(rows, loss) if loss else None,
                )

    def draw_profiles(self) -> None:
        """Draws the performance profiles of methods that appear in every setting.

        With several settings the returns of each are scaled to [0, 1]. Nothing is drawn
        for fewer than two methods, fewer than 3 seeds, or settings that mix tasks.
        """
        by_setting = self.settings.values()
        if not by_setting:
            return
        common = set.intersection(*(set(names) for names in by_setting))
        used = [r for by_name in by_setting for n, r in by_name.items() if n in common]
        is_one_task = len({summary.env_of(run) for run in self.evaluated}) < 2
        if len(common) < 2 or not all(_has_interval(r.values) for r in used):
            return
        if len(self.settings) == 1 and not is_one_task:
            return
        scaled: dict[str, dict[str, np.ndarray]] = {}
        ends, label = (0.0, 1.0), self.design.metric.replace("_", " ")
        for setting, by_name in self.settings.items():
            every = np.concatenate([result.values for result in by_name.values()])
            every = every[np.isfinite(every)]
            low, span = every.min(), np.ptp(every) or 1.0
            if len(self.settings) == 1:
                ends, low, span = (low, low + span), 0.0, 1.0
            for name in (name for name in by_name if name in common):
                values = (by_name[name].values - low) / span
                scaled.setdefault(name, {})[verdicts.setting_text(setting)] = values
        if len(self.settings) > 1:
            label += ": 0 is the lowest, 1 the highest of a setting"
        path, thresholds = self.folder / "profiles.png", np.linspace(*ends, 101)
        plots.performance_profiles(scaled, path, thresholds=thresholds, x_label=label)


def _from_runs(folder: Path, runs: Sequence[results.Run]) -> list[Result]:
    try:
        finals = summary.finals_per_run(runs)
    except ValueError as error:
        raise ResultsError(f"{folder}: {error}") from None
    return [
        Result(
            _labels(run),
            finals[run.name].seeds,
            finals[run.name].values,
            np.isin(finals[run.name].seeds, list(finals[run.name].diverged)),
            run.name,
        )
        for run in runs
    ]


def _labels(run: results.Run) -> dict[str, Label]:
    """The labels of a run, as they would be read from a CSV file.

    A run that belongs to no study is labeled with its name.
    """
    labels = run.record.get("labels") or {"loss": run.name}
    return {column: _number(value) for column, value in labels.items()}


def _from_finals(folder: Path, design: Design) -> list[Result]:
    rows = files.read_rows(folder / "finals.csv")
    needed = {design.contrast, "seed", design.metric, "diverged"}
    if not rows or (missing := needed - set(rows[0])):
        lacks = ", ".join(sorted(missing)) if rows else "any row"
        raise ResultsError(f"{folder / 'finals.csv'}: lacks {lacks}")
    texts = [
        name
        for name in needed - {design.contrast}
        for row in rows
        if isinstance(row[name], str)
    ]
    if texts:
        raise ResultsError(
            f"{folder / 'finals.csv'}: {texts[0]}: a text; numbers are accepted"
        )
    columns = [c for c in rows[0] if c not in ("seed", design.metric, "diverged")]
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return [
        Result(
            {c: v for c, v in zip(columns, values, strict=True) if v is not None},
            np.array([row["seed"] for row in group]),
            np.array([row[design.metric] for row in group], dtype=np.float64),
            np.array([row["diverged"] for row in group], dtype=bool),
        )
        for values, group in groups.items()
    ]


def _ordered(all_results: Sequence[Result], design: Design) -> list[Result]:
    """The results by setting; in each, methods first, then baselines, then others."""
    ranks = {name: i for i, name in enumerate((*design.methods, *design.baselines))}
    columns = [column for column in _columns(all_results) if column != design.contrast]

    def order(result: Result):
        labels = [result.labels.get(column) for column in columns]
        setting = [(x is None, isinstance(x, str), x or 0) for x in labels]
        name = str(result.labels.get(design.contrast))
        return setting, ranks.get(name, len(ranks)), name

    return sorted(all_results, key=order)


def _columns(all_results: Sequence[Result]) -> list[str]:
    """The labels of the run with the most of them, then any others."""
    most_first = sorted(all_results, key=lambda result: -len(result.labels))
    return list(dict.fromkeys(c for result in most_first for c in result.labels))


def _has_interval(values: np.ndarray) -> bool:
    return len(values) >= stats.MIN_SEEDS and bool(np.isfinite(values).all())


def _cells(names: Sequence[str], interval: Interval) -> dict[str, float | None]:
    """An interval as cells of a table, with six digits and empty for NaN."""
    return {
        name: float(f"{value:.6g}") if math.isfinite(value) else None
        for name, value in zip(names, interval, strict=True)
    }


def _number(value: Any) -> Label:
    for kind in (int, float):
        try:
            return kind(str(value))
        except ValueError:
            continue
    return str(value)
