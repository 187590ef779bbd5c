"""`vagram watch`: the page, its server, a real browser, and the terminal."""

import contextlib
import http.client
import io
import re
import shutil
import subprocess
import sys
import threading

import browser as browsers
import commands
import numpy as np
import pytest

from vagram_jax.analysis import figures
from vagram_jax.cli import flags, status, terminal, watch
from vagram_jax.storage import files, lock, results

CONFIG = {"total_steps": 100, "num_seeds": 4}


def append(run, step):
    """Appends an evaluation of four seeds; the loss of the run is its name."""
    clock = {"seed": 0, "env_steps": step, "wall_time_s": step * 10.0}
    files.append_rows(run / "timing.csv", [clock])
    slope = {"vagram": 1.0, "mle": -1.0}[run.name]
    rows = [
        {"env": "toy", "loss": run.name, "seed": seed, "env_steps": step}
        | {"return": slope * step + seed, "diverged_at": None}
        for seed in range(4)
    ]
    files.append_rows(run / "metrics.csv", rows)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with a finished run and one that trains."""
    root = tmp_path_factory.mktemp("results")
    for name, last in (("mle", 100), ("vagram", 60)):
        run = results.create_run(root, "study", name, CONFIG)
        for step in range(20, last + 1, 20):
            append(run, step)
    files.write_json(root / "study" / "mle" / "summary.json", {})
    with lock.hold(root / "study" / "vagram"):
        yield root / "study"


@pytest.fixture(scope="module", autouse=True)
def small_figures():
    with pytest.MonkeyPatch.context() as patch:
        yield patch.setattr(figures, "_DPI", 60)


@contextlib.contextmanager
def served(study, every):
    """The address of a server whose page is refreshed after so many seconds."""
    with watch.serve([str(study)], port=0, every=every) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address
        server.shutdown()


@pytest.fixture(scope="module")
def address(study):
    """The address of a server whose page is refreshed every second."""
    with served(study, every=1) as each:
        yield each


def get(address, path="/", **headers):
    """Status and text of an answer."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_the_page_shows_progress_time_left_and_curves(address):
    code, text = get(address)
    assert code == 200
    assert '<meta http-equiv="refresh" content="1">' in text
    cells = re.findall(r"<td [^>]*>([^<]*)</td>", text)
    assert len(cells) == 2 * len(status.HEADER)
    mle, vagram = cells[:7], cells[7:]
    assert mle[:3] == ["study/mle", "finished", "100 of 100"]
    assert vagram[1].startswith("running (pid ")
    # 40 steps took 400 s, and 40 steps are left.
    assert vagram[2:] == ["60 of 100", "4", "61.50", "00:10:00", "00:06:40"]
    assert text.count('src="data:image/png;base64,') == 1
    assert "script" not in text


def test_the_server_answers_only_on_the_loopback_and_only_for_its_own_name(address):
    assert address[0] == "127.0.0.1"
    assert get(address, "/study")[0] == get(address, "/?x=1")[0] == 200
    for host in ("evil.example", f"evil.example:{address[1]}", ""):
        assert get(address, Host=host)[0] == 404
    for path in ("/other", "/../study/mle/config.json", "/study/mle/config.json"):
        assert get(address, path)[0] == 404


def test_a_folder_of_studies_gets_a_page_with_links_and_no_figures(study):
    pages = watch.Pages([str(study)], 5)
    with pytest.MonkeyPatch.context() as patch:
        two = [s for s in status.read([str(study)]) for _ in range(2)]
        patch.setattr(status, "read", lambda _: two)
        text = pages.render("")
    assert text is not None
    assert text.count('<a href="/study">study</a>') == 2
    assert "<img" not in text


def test_figures_are_drawn_again_only_after_a_new_row(study, tmp_path, monkeypatch):
    folder = shutil.copytree(study, tmp_path / "study")
    pages, drawn = watch.Pages([str(folder)], 5), []
    monkeypatch.setattr(watch, "_figures", lambda runs: drawn.append(runs) or {})
    pages.render("")
    pages.render("study")
    assert len(drawn) == 1
    append(folder / "vagram", 80)
    assert "80 of 100" in str(pages.render(""))
    assert len(drawn) == 2


def test_what_is_missing_or_damaged_is_shown_in_a_line(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "study")
    table = folder / "vagram" / "metrics.csv"
    header, *rows = table.read_text().splitlines()
    # The seeds train one after the other and have no step in common yet.
    table.write_text("\n".join([header, rows[0], rows[-1], ""]))
    (folder / "mle" / "metrics.csv").write_text("a,b\n<script>\n")
    pages = watch.Pages([str(folder)], 5)
    text = str(pages.render(""))
    assert (
        "vagram: no curve yet (curves: the seeds have no env_steps in common)" in text
    )
    assert "damaged: " in text
    assert "<script>" not in text
    shutil.rmtree(folder)
    assert "no such folder" in str(pages.render(""))
    assert "no such folder" in str(pages.render("study"))


@pytest.mark.parametrize("flag", ["--port=-1", "--port=70000", "--every=0"])
def test_a_number_out_of_range_is_refused(study, flag):
    code, _, error = commands.call("watch", str(study), flag)
    assert code == 2
    assert error.startswith(f"{flag}; ")
    assert error.count("\n") == 1


def test_in_a_pipe_the_terminal_is_drawn_once(study):
    pytest.importorskip("rich")
    code, out, error = commands.call("watch", str(study), "--terminal")
    assert (code, error) == (0, "")
    assert out.count("60 of 100") == 1


def test_a_port_that_is_taken_is_named(study, address):
    with pytest.raises(flags.UsageError, match=r"--port=\d+: .*; choose another"):
        watch.serve([str(study)], port=address[1], every=5)


def drawn(study, width):
    """What is drawn in a terminal that is so many characters wide."""
    pytest.importorskip("rich")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        studies = status.read([str(study)])
        curves = [watch.drawable(each.runs)[0] for each in studies]
        with contextlib.redirect_stdout(out):
            terminal.draw(studies, curves)
    return out.getvalue()


def test_the_terminal_shows_the_table_and_the_curves(study):
    lines = drawn(study, 100).splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "100 of 100" in text
    assert "00:06:40" in text
    assert "── MLE  ── VaGraM" in text
    chart = [line[10:] for line in lines if re.match(r"^[ \d.-]{8} [┤│]", line)]
    assert len(chart) == terminal._HEIGHT
    assert "61.50 ┤" in text
    assert "-98.50 ┤" in text
    # One line goes up to 60 steps, the other one down to 100, at the right end.
    assert chart[-1].rstrip("\u2800")[-1] == chart[-1][-1]
    assert set(chart[0].strip("\u2800 ")) - {"\u2800"}


@pytest.mark.parametrize("y", [[], [np.nan], [3.0], [1.0, 1.0], [-1.7e308, 1.7e308]])
def test_a_chart_takes_any_number_of_points(y):
    pytest.importorskip("rich")
    text = terminal.chart({"mle": (np.arange(len(y)), y)}, 40, {"mle": "mle"}).plain
    dots = sum(0x2800 < ord(c) < 0x2900 for c in text)
    assert bool(dots) == bool(np.isfinite(y).any())


def test_a_missing_package_is_named_with_its_extra(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(flags.UsageError, match=r'pip install "vagram_jax\[terminal\]"'):
        terminal.draw([], [])


@contextlib.contextmanager
def browser(address, profile, *args):
    """Starts a browser without a window on the page, and ends it."""
    url = "http://{}:{}/".format(*address)
    options = (*browsers.OPTIONS, f"--user-data-dir={profile}")
    command = [browsers.CHROMIUM, *options, *args, url]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@browsers.needed
def test_a_browser_shows_the_curves(study, tmp_path, monkeypatch):
    import matplotlib.image

    monkeypatch.setattr(figures, "_DPI", 120)  # about the pixels of the page
    picture = tmp_path / "page.png"
    # Virtual time waits for the page; a refresh would set it back.
    options = ("--virtual-time-budget=1000", "--window-size=1000,1400")
    with (
        served(study, every=3600) as address,
        browser(address, tmp_path, f"--screenshot={picture}", *options) as process,
    ):
        assert process.wait(240) == 0
    pixels = matplotlib.image.imread(picture)[..., :3]
    for method, direction in (("vagram", -1), ("mle", 1)):
        color = figures.color(method).removeprefix("#")
        rgb = np.array([int(color[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        rows, columns = np.nonzero(np.abs(pixels - rgb).max(axis=-1) < 0.1)
        in_axes = rows < rows.max(initial=0) - 60  # above the legend
        assert in_axes.sum() > 200, method
        # Rows are counted from the top, so the curve that rises has falling rows.
        slope = np.polyfit(columns[in_axes], rows[in_axes], 1)[0]
        assert np.sign(slope) == direction, method


@browsers.needed
def test_a_browser_loads_the_page_again_by_itself(address, tmp_path, monkeypatch):
    asked, render = threading.Semaphore(0), watch.Pages.render

    def count(pages, name):
        if not name:  # a browser also asks for an icon
            asked.release()
        return render(pages, name)

    monkeypatch.setattr(watch.Pages, "render", count)
    with browser(address, tmp_path, "--remote-debugging-port=0"):  # it stays open
        for _ in range(3):
            assert asked.acquire(timeout=120)
