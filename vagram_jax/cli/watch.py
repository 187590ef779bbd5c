"""Shows learning curves, progress and time left of running studies, and refreshes.

    vagram watch results/pendulum-15
    vagram watch results/pendulum-15 --terminal

The first command serves a page to the browsers of this machine only; a folder that
holds several studies gets a page with a link to each. `--terminal` needs no browser.
Both only read files, which other processes may be writing.
"""

from __future__ import annotations

import base64
import functools
import http.server
import sys
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vagram_jax.analysis import figures, maps, plots, report, summary
from vagram_jax.cli import flags, status, terminal
from vagram_jax.storage import files
from vagram_jax.storage.results import Run

PORT = flags.DEFINE_integer("port", 8420, "Port of the page; 0: any that is free.")
EVERY = flags.DEFINE_integer("every", 5, "Seconds between two refreshes.")
TERMINAL = flags.DEFINE_bool("terminal", False, "Draw in the terminal, not on a page.")

_ADDRESS = "127.0.0.1"  # the loopback: no other machine reaches it
_RESAMPLES = 500  # of an interval; the report has more


def main(folders: list[str]) -> int:
    """Serves the page, or draws in the terminal, until it is interrupted.

    Raises:
      ResultsError: a folder has no run in it, or can't be read.
      UsageError: a number is out of range, or the port is taken.
    """
    for flag, low, high in ((PORT, 0, 65_535), (EVERY, 1, 86_400)):
        if not low <= flag.value <= high:
            raise flags.UsageError(f"--{flag.name}={flag.value}; {low} to {high}")
    status.read(folders)  # raises unless there is something to show
    try:
        if TERMINAL.value:
            _draw(folders)
            return 0
        with serve(folders, port=PORT.value, every=EVERY.value) as server:
            url = f"http://{_ADDRESS}:{server.server_address[1]}/"
            print(f"{url} shows the runs; Ctrl-C ends", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        pass
    return 0


def serve(
    folders: Sequence[str], *, port: int, every: int
) -> http.server.ThreadingHTTPServer:
    """Returns a server of the pages, which listens on the loopback address.

    Args:
      folders: as for `status.read`.
      port: of the server; 0 means any that is free.
      every: seconds between two refreshes of a page.

    Raises:
      UsageError: the port is taken.
    """
    handler = functools.partial(_Handler, Pages(folders, every))
    try:
        return http.server.ThreadingHTTPServer((_ADDRESS, port), handler)
    except OSError as error:
        raise flags.UsageError(
            f"--port={port}: {error.strerror}; choose another, or 0 for any"
        ) from None


class Pages:
    """The pages, with the figures of the last version of each study."""

    def __init__(self, folders: Sequence[str], every: int):
        """Shows the studies in some folders, refreshed after so many seconds."""
        self._folders, self._every = folders, every
        self._lock = threading.Lock()  # browsers ask for pages at the same time
        self._figures: dict[Path, tuple[Any, dict[str, Any]]] = {}

    def render(self, name: str) -> str | None:
        """Returns a page.

        Args:
          name: of a study, which is shown with its figures; "" shows all studies, and
            the figures if there is only one.

        Returns:
          The HTML, or None if there is no such study.
        """
        problem, studies = "", []
        with self._lock:
            try:
                studies = status.read(self._folders)
            except files.ResultsError as error:
                problem = str(error)
            if name:
                studies = [study for study in studies if study.folder.name == name]
                if not studies and not problem:
                    return None
            with_figures = bool(name) or len(studies) == 1
            names = {study.folder.name for study in studies}
            return report.template("watch.html.jinja").render(
                title=names.pop() if len(names) == 1 else "Studies",
                is_first=not name,
                header=status.HEADER,
                studies=[self._study(study, with_figures) for study in studies],
                problem=problem,
                every=self._every,
                time=time.strftime("%H:%M:%S"),
            )

    def _study(
        self, study: status.StudyStatus, with_figures: bool
    ) -> Mapping[str, Any]:
        name = study.folder.name
        shown = {"name": name, "rows": study.rows, "notes": [], "figures": []}
        if not with_figures:
            return shown | {"link": urllib.parse.quote(name)}
        # Tables only grow or are cut, so their sizes say whether they have changed.
        sizes = [(run.name, len(run.metrics), len(run.model)) for run in study.runs]
        if self._figures.get(study.folder, (None,))[0] != sizes:
            self._figures[study.folder] = sizes, _figures(study.runs)
        return shown | self._figures[study.folder][1] | {"link": ""}


def drawable(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Returns the runs that have a learning curve, and why other runs have none."""
    with_curve, notes = [], []
    for run in runs:
        try:
            summary.env_of(run)
            summary.curves(run.metrics, floor=0.0, resamples=1)
            with_curve.append(run)
        except ValueError as error:
            notes.append(f"{run.name}: no curve yet ({error})")
    return with_curve, notes


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of a study as base64, and a line for what can't be drawn."""
    drawn, notes = drawable(runs)
    shown = []
    try:
        if drawn:
            curves = plots.learning_curves(drawn, resamples=_RESAMPLES)
            shown.append({"heading": "Learning curves", "data": _encoded(curves)})
        if any(map(maps.num_dims, drawn)):
            shown.append(
                {"heading": "Attention", "data": _encoded(maps.attention(drawn))}
            )
    except (ValueError, ArithmeticError) as error:
        notes.append(str(error))
    return {"figures": shown, "notes": [files.printable(note) for note in notes]}


def _encoded(figure) -> str:
    return base64.b64encode(figures.png(figure)).decode()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests for pages."""

    timeout = 30  # seconds: browsers open connections that they may never use

    def __init__(self, pages: Pages, *args):
        self._pages = pages
        super().__init__(*args)

    def do_GET(self) -> None:
        """Sends a page."""
        # A page of the web whose name leads to this machine sends its own name.
        host = self.headers.get("Host", "").partition(":")[0]
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path.strip("/"))
        text = self._pages.render(name) if host in (_ADDRESS, "localhost") else None
        if text is None:
            self.send_error(404)
            return
        body = text.encode(errors="backslashreplace")
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        """Prints nothing: the terminal belongs to the user."""


def _draw(folders: Sequence[str]) -> None:
    """Draws in the terminal, once if the output isn't a terminal."""
    while True:
        studies = status.read(folders)
        curves = [drawable(study.runs)[0] for study in studies]
        terminal.draw(studies, curves)
        if not sys.stdout.isatty():
            return
        time.sleep(EVERY.value)
