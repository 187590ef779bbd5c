"""The findings page, the README's table and the results they are computed from."""

import dataclasses
import re

import numpy as np
import pytest

from experiments import agent_page, claims, findings, studies
from vagram_jax.analysis.study import Design, Result, Study
from vagram_jax.storage import files

PAGE = findings.ROOT / findings.PAGE
RESULTS = findings.ROOT / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("**/study.json"))


@pytest.fixture(scope="module")
def page():
    return findings.text()


def test_the_page_is_up_to_date(page):
    message = "docs/findings.md is stale; run `vagram study --write_findings`"
    assert PAGE.read_text(encoding="utf-8") == page, message


def test_the_page_of_the_agent_is_up_to_date():
    path = findings.ROOT / agent_page.PAGE
    message = f"{path} is stale; run `vagram study --write_findings`"
    assert path.read_text(encoding="utf-8") == agent_page.text(), message


def test_the_page_is_short_and_its_links_exist(page):
    assert page.count("\n") <= 150
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page):
        assert (PAGE.parent / link).exists(), link


def test_the_readme_has_the_table_of_the_main_job():
    readme = (findings.ROOT / findings.README).read_text(encoding="utf-8")
    block = findings.readme_block()
    assert "| two layers of 16 | -1" in block
    if findings.BLOCK[0] in readme:
        assert f"{findings.BLOCK[0]}\n\n{block}\n{findings.BLOCK[1]}" in readme


def test_write_replaces_the_block_of_the_readme(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("Before.\n<!-- results -->\nold\n<!-- /results -->\nAfter.\n")
    assert [path.name for path in findings.write()] == [
        "findings.md", "agent.md", "findings.png", "README.md",
    ]  # fmt: skip
    text = readme.read_text()
    assert findings.readme_block() in text
    assert "old" not in text
    assert text.startswith("Before.\n<!-- results -->\n")
    assert text.endswith("<!-- /results -->\nAfter.\n")
    findings.write()
    assert readme.read_text() == text


def test_a_sentence_that_the_results_contradict_is_refused(monkeypatch):
    study = claims.load("confirmation")
    swapped = {"vagram": "sac", "sac": "vagram"}
    results = [
        dataclasses.replace(
            result,
            labels={**result.labels}
            | {"loss": swapped.get(result.labels["loss"], result.labels["loss"])},
        )
        for result in study.results
    ]
    others = claims.load
    contrary = dataclasses.replace(study, results=results)
    monkeypatch.setattr(
        findings, "load", lambda x: contrary if x == "confirmation" else others(x)
    )
    with pytest.raises(files.ResultsError, match="no longer show: VaGraM wins"):
        findings.text()


@pytest.mark.parametrize(
    ("better", "other", "diverged", "par", "verdict"),
    [
        ([9, 10, 11], [1, 2, 3], 0, False, claims.HOLDS),
        ([1, 2, 3], [9, 10, 11], 0, False, claims.FAILS),
        ([1, 5, 9], [2, 6, 8], 0, False, claims.OPEN),
        ([1, 5, 9], [2, 6, 8], 0, True, claims.HOLDS),
        ([1, 2, 3], [9, 10, 11], 0, True, claims.FAILS),
        ([9, 10, 11], [1, 2, 3], 2, False, claims.FAILS),
    ],
)
def test_judge_follows_the_rule_of_the_page(better, other, diverged, par, verdict):
    study = Study(RESULTS, Design(), [])
    one, two = (
        Result({}, np.arange(3), np.array(x, float), np.arange(3) < count)
        for x, count in ((better, diverged), (other, 0))
    )
    claim = claims.Claim("", par, {"task": [claims.Pair(study, one, two)]})
    assert claims.judge(claim, "task") == verdict


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tables_and_verdicts_are_those_of_the_seeds(folder):
    if folder.name == "loss_surface":  # has no seeds
        return
    study = Study.load(folder)
    assert files.read_rows(folder / "table.csv") == study.table()
    verdict = study.verdict()
    assert study.record["verdict"][: len(verdict)] == verdict


def test_results_hold_the_studies_and_nothing_large():
    # The long study has no results yet.
    missing = {"hopper"}
    assert {path.name for path in (RESULTS / "studies").iterdir()} == (
        set(studies.descriptions()) - missing
    )
    # Git ignores all other folders: they hold what a user trained in this checkout.
    published = ("README.md", "benchmark", "example", "gpu", "studies")
    published += ("published_curves.csv",)
    roots = [RESULTS / name for name in published]
    paths = [x for root in roots for x in (root, *root.rglob("*")) if x.is_file()]
    assert len(paths) <= 100
    assert sum(path.stat().st_size for path in paths) <= 4_000_000
