"""The report: its contents, its safety, and the wording of the verdict."""

import base64
import hashlib
import html
import json
import math
import re
import subprocess
from html.parser import HTMLParser

import browser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vagram_jax.analysis import attachments, figures, plots, report
from vagram_jax.analysis.study import Study
from vagram_jax.storage import files, results
from vagram_jax.storage.files import ResultsError

ATTACK = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"


class Page(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Records a tag and its attributes."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        """Records text between tags."""
        self.text += data


def add_run(root, name, *, best=0.0, diverged=(), finished=True, text="toy"):
    config = {"loss": name, "num_seeds": 4, "distractors": 0}
    config |= {"sac": {"discount": 0.9}, "dynamics": {"hidden": [8, 8]}}
    config |= {text: text} if text != "toy" else {}
    folder = results.create_run(root, "study", name, config, on={"device": text})
    rows = [
        {
            "env": text,
            "loss": text,
            "seed": seed,
            "env_steps": step,
            "return": math.nan if seed in diverged and step > 200 else best + seed,
            "diverged_at": 250 if seed in diverged and step > 200 else None,
        }
        for step in (100, 200, 300, 400, 500)
        for seed in range(4)
    ]
    files.append_rows(folder / "metrics.csv", rows)
    seconds = [{"seed": 0, "env_steps": 500, "wall_time_s": 4567.0}]
    files.append_rows(folder / "timing.csv", seconds)
    fit = {"env_steps": 500, "attention_dim_0": 1, "error_dim_0": 0.5}
    files.append_rows(folder / "model.csv", [{"seed": s} | fit for s in range(4)])
    if finished:
        files.write_json(folder / "summary.json", {})
    return folder


def write(study) -> Page:
    path = report.write_report(Study.load(study))
    assert path == study / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def small_figures():
    with pytest.MonkeyPatch.context() as patch:
        yield patch.setattr(figures, "_DPI", 40)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A study with a report, and the page. Tests must not change it."""
    root = tmp_path_factory.mktemp("results")
    add_run(root, "mle", best=10.0)
    add_run(root, "vagram", diverged=[2])
    return root / "study", write(root / "study")


def test_write_report_shows_all_results(written):
    study, page = written
    for text in [
        "study",
        "MLE beats VaGraM (intervals don't overlap).",
        "1 of 4 seeds of VaGraM diverged",
        "0/4",
        "1/4",
        "250",
        "11.5",
        "1:16:07",  # wall time
        "sac.discount",
        "numpy",
        "Settings that differ between runs",
    ]:
        assert text in page.text, text
    content = json.loads(
        (study / "summary.json").read_text(), parse_constant=pytest.fail
    )
    assert content["runs"]["mle"]["iqm"] == 11.5
    assert content["runs"]["vagram"]["diverged"] == 1
    assert content["verdict"][0] == "MLE beats VaGraM (intervals don't overlap)."


def test_write_report_loads_and_runs_nothing(written):
    study, page = written
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    names = ("learning_curves", "profiles", "attention", "cost")
    images = [(study / f"{name}.png").read_bytes() for name in names]
    data = [base64.b64encode(image).decode() for image in images]
    assert sources == [f"data:image/png;base64,{text}" for text in data]
    text = (study / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import", text)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; media-src data:; style-src '{digest}'"
    assert policy.replace(digest, f"sha256-{digest}") in text
    assert " style=" not in text


def test_write_report_contains_no_absolute_path(written):
    study, _ = written
    for path in study.rglob("*"):
        if path.is_file():
            assert str(study.parent).encode() not in path.read_bytes()


def test_write_report_gives_the_same_bytes_for_the_same_files(written):
    study, _ = written
    first = {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()}
    write(study)
    again = {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()}
    assert first == again
    expected = "learning_curves.png profiles.png attention.png cost.png"
    assert set(first) == {*expected.split(), "report.html", "summary.json"}


def test_write_report_shows_other_figures(tmp_path):
    study = add_run(tmp_path, "mle").parent
    points = {"mle": {0: [1.0, 2.0, 3.0], 1: [1.0, 2.0, 3.0]}}
    plots.sweep(points, study / "over_capacity.png", x_label="capacity")
    (study / "fake.png").write_text(ATTACK)
    (study / "link.png").symlink_to(study / "over_capacity.png")
    with open(study / "huge.png", "wb") as file:
        file.write(b"\x89PNG\r\n")
        file.truncate(attachments._MAX_FIGURE_BYTES + 1)
    page = write(study)
    assert page.tags.count("img") == 4  # learning curves, attention, cost and the sweep
    assert "over capacity" in page.text


def test_write_report_contains_films_up_to_a_size(tmp_path, monkeypatch):
    folder, study = add_run(tmp_path, "mle"), tmp_path / "study"
    film = b"\0\0\0\x20ftypisom"
    contents = {(0, "mp4"): film, (1, "gif"): b"GIF89a", (2, "mp4"): film}
    contents |= {(3, "html"): b"<script>", (4, "gif"): ATTACK.encode()}
    for (seed, kind), data in contents.items():
        results.picture_path(folder, seed, kind).write_bytes(data)
    monkeypatch.setattr(attachments, "_MAX_FILM_BYTES", len(film) + 7)
    page = write(study)
    assert page.tags.count("video") == 1
    shown = [base64.b64encode(data).decode() for data in (film, b"GIF89a")]
    sources = [value for name, value in page.attributes if name == "src"]
    assert sources[-2:] == [
        f"data:video/mp4;base64,{shown[0]}",
        f"data:image/gif;base64,{shown[1]}",
    ]
    links = [value for name, value in page.attributes if name == "href"]
    assert links == [f"mle/policy-seed{end}" for end in ("2.mp4", "3.html", "4.gif")]
    assert all((study / link).is_file() for link in links)
    assert "MLE, seed 1" in page.text


def test_write_report_escapes_every_text(tmp_path):
    folder = add_run(tmp_path, "mle", text=ATTACK)
    record = files.read_json(folder / "config.json")
    record |= dict.fromkeys(("command", "started", "revision"), ATTACK)
    record["versions"] = {ATTACK: ATTACK}
    files.write_json(folder / "config.json", record)
    study = (tmp_path / "study").rename(tmp_path / ATTACK)
    plots.sweep({"a": {0: [1, 2, 3]}}, study / f"{ATTACK}.png", x_label="x")
    page = write(study)
    allowed = "lang charset http-equiv content name class alt src data-label"
    assert {name for name, _ in page.attributes} == set(allowed.split())
    assert page.tags.count("img") == 4
    # Title, heading, figure, environment, config, device, command, versions ...
    assert page.text.count(ATTACK) >= 10


def test_write_report_notes_unfinished_and_damaged_runs(tmp_path):
    add_run(tmp_path, "mle")
    (add_run(tmp_path, "none") / "model.csv").unlink()  # SAC has no model
    folder = add_run(tmp_path, "mse", finished=False)
    with open(folder / "metrics.csv", "a") as file:
        file.write("toy,ms")
    results.create_run(tmp_path, "study", "vaml", {})
    page = write(tmp_path / "study")
    assert "mse: unfinished" in page.text
    assert "mse: metrics.csv: the last line is cut off" in page.text
    assert "vaml: no evaluation yet" in page.text
    assert page.tags.count("img") == 4


def test_write_report_without_model_fits_has_no_attention(tmp_path):
    (add_run(tmp_path, "none") / "model.csv").unlink()
    page = write(tmp_path / "study")
    assert page.tags.count("img") == 2  # learning curves and cost
    assert "None." in page.text  # no setting differs


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The page of a sweep of four discounts and two losses."""
    root = tmp_path_factory.mktemp("results")
    for loss, bonus in (("mle", 0.0), ("vagram", 9.0)):
        for index, discount in enumerate(("0.9", "0.95", "0.99", "0.999")):
            labels = {"loss": loss, "sac.discount": discount}
            name = f"{loss}_discount-{discount}"
            folder = add_run(root, name, best=bonus + 20 * index)
            record = files.read_json(folder / "config.json") | {"labels": labels}
            record["revision"] = "0123456789" * 4 + "-dirty"
            files.write_json(folder / "config.json", record)
    return root / "study", write(root / "study")


def test_write_report_sorts_a_sweep_and_shows_the_effect_of_each_axis(swept):
    study, page = swept
    assert (study / "effects.png").is_file()
    best = page.text.index("VaGraM0.99970.50[69.00, 72.00]0/4")
    assert best < page.text.index("MLE0.99961.50") < page.text.index("VaGraM0.9950.50")
    assert "sac.discount0.96.0060.002" in page.text
    assert "lossMLE31.509.004" in page.text
    assert (
        "The best of 8 runs is VaGraM, sac.discount 0.999: 70.50 [69.00, 72.00]. It "
        "beats 7 of the other 7 (intervals don't overlap)."
    ) in page.text
    assert "sac.discount 0.9: VaGraM beats MLE" in page.text
    assert "0123456789-dirty" in page.text
    assert "01234567890" not in page.text


@browser.needed
def test_a_report_is_as_wide_as_a_telephone(swept, tmp_path):
    text = (swept[0] / "report.html").read_text()
    text = re.sub(r'<meta http-equiv="Content.*?>', "", text)  # it allows no script
    text += "<script>let parts = [...document.querySelectorAll('html, .wide')];"
    text += "let hidden = parts.map(part => part.scrollWidth - part.clientWidth);"
    text += "parent.document.title = [innerWidth, Math.max(...hidden)]</script>"
    # The window of a browser isn't as narrow as a frame may be.
    frame = f'<title></title><iframe width="400" srcdoc="{html.escape(text)}"></iframe>'
    (tmp_path / "page.html").write_text(frame)
    options = (*browser.OPTIONS, f"--user-data-dir={tmp_path / 'profile'}")
    command = [browser.CHROMIUM, *options, "--dump-dom"]
    page = (tmp_path / "page.html").as_uri()
    done = subprocess.run([*command, page], capture_output=True, text=True, timeout=240)
    assert "<title>400,0</title>" in done.stdout


def test_write_report_rejects_other_folders_in_one_line(tmp_path):
    results.create_run(tmp_path, "study", "vaml", {})
    for folder, message in (
        ("study", "no run has an evaluation yet"),
        ("study/vaml", "no run"),
        ("missing", "missing"),
    ):
        with pytest.raises(ResultsError, match=message) as error:
            report.write_report(Study.load(tmp_path / folder))
        assert "\n" not in str(error.value)


def row(low, high, *, seeds=10, diverged=0, env="toy", steps=500):
    numbers = {"iqm": (low + high) / 2, "low": low, "high": high, "seconds": 1.0}
    numbers |= {"seeds": seeds, "diverged": diverged, "env_steps": steps}
    return {"env": env, "loss": "x", "warnings": []} | numbers


A_BEATS_C = {"a": row(4, 5), "b": row(2, 4.5), "c": row(0, 3)}


@pytest.mark.parametrize(
    ("summaries", "sentences"),
    [
        (
            {"vagram": row(0, 1), "mle": row(2, 3)},
            ["MLE beats VaGraM (intervals don't overlap)."],
        ),
        (
            {"a": row(0, 1) | {"warnings": ["1 untrained", "5% dropped"]}},
            [
                "a: 1 untrained and 5% dropped. An untrained model never improved in a "
                "fit: check the loss and fit.learning_rate. Dropped transitions had "
                "numbers that aren't finite: check the environment.",
            ],
        ),
        (
            A_BEATS_C,
            [
                "a beats c (intervals don't overlap).",
                "a and b don't differ significantly.",
                "b and c don't differ significantly.",
            ],
        ),
        (
            A_BEATS_C | {"b": row(2, 9), "d": row(1, 2)},
            [
                "a beats c and d (intervals don't overlap).",
                "a and b don't differ significantly.",
                "b doesn't differ significantly from c or d.",
                "c and d don't differ significantly.",
            ],
        ),
        ({"a": row(1, 2), "b": row(2, 3)}, ["a and b don't differ significantly."]),
        (
            {name: row(0, 1) for name in "abc"},
            ["No two of a, b and c differ significantly."],
        ),
        (
            {"a": row(0, 1, seeds=3), "b": row(2, 3), "c": row(math.nan, math.nan)},
            [
                "Not compared: a and c. A comparison needs at least 4 seeds and a "
                "finite return.",
                "With fewer than 10 seeds a 95% interval is too narrow: with 4 seeds "
                "it contains the true value in about 87 of 100 studies.",
            ],
        ),
        (
            {"a": row(0, 1, diverged=2), "b": row(0, 1)},
            [
                "a and b don't differ significantly.",
                "2 of 10 seeds of a diverged and count with the lowest return on the "
                "environment.",
            ],
        ),
        (
            {"a": row(0, 1), "b": row(2, 3, env="other"), "c": row(2, 3, steps=900)},
            ["On toy, runs with different numbers of steps aren't compared."],
        ),
    ],
)
def test_verdict_has_these_sentences(summaries, sentences):
    assert report.verdict(summaries) == sentences


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=5)
)
def test_verdict_treats_all_names_equally(ends):
    names = ["vagram", "mle", "mse", "vaml", "other"][: len(ends)]
    rows = [row(low, low + width) for low, width in ends]
    sentences = report.verdict(dict(zip(names, rows, strict=True)))
    rotated = names[1:] + names[:1]
    shown = [[figures.display_name(n) for n in each] for each in (names, rotated)]
    rename = dict(zip(*shown, strict=True))
    pattern = re.compile("|".join(rename))
    expected = [pattern.sub(lambda m: rename[m.group()], text) for text in sentences]
    assert report.verdict(dict(zip(rotated, rows, strict=True))) == expected
