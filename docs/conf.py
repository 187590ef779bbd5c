"""Configuration of the documentation site: Sphinx with MyST, and the furo theme.

The pages are Markdown that can also be read on GitHub. `make docs` builds the site.
"""

import re
import sys
from pathlib import Path

import latex2mathml.converter
from docutils import nodes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vagram_jax  # noqa: E402

project = "vagram_jax"
author = "the vagram_jax maintainers"
release = version = vagram_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"vagram_jax {version}"
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}

nitpicky = True
# Types of other packages aren't linked, so that a build needs no network.
nitpick_ignore_regex = [(r"py:.*", r"(?!vagram_jax\.).*")]


def link_out(app, docname, source):
    """Converts links that lead out of docs/, which work on GitHub, for the site.

    A module becomes a link to its reference, any other file or folder plain text.
    """
    folder = (ROOT / "docs" / docname).parent

    def convert(match):
        text, target = match[1], (folder / match[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        if target.suffix != ".py":
            return text
        module = target.relative_to(ROOT).with_suffix("").parts
        name = ".".join(module).removesuffix(".__init__")
        return f"{{py:mod}}`{text.strip('`')} <{name}>`"

    source[0] = re.sub(r"(?<!!)\[([^]]+)\]\((\.\./[^)#]+)\)", convert, source[0])


def markdown_to_rst(app, what, name, obj, options, lines):
    """Converts the Markdown of docstrings: code in backquotes, indented blocks."""
    text = "\n".join(lines)
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)(\w?)", _code, text)
    text = re.sub(r"(?m)^(\S.*)\n\n(?= {4})", r"\1\n\n::\n\n", text)
    lines[:] = text.split("\n")


def _code(match):
    suffix = rf"\ {match[2]}" if match[2] else ""
    return f"``{match[1]}``{suffix}"


def skip_generated(app, what, name, obj, skip, options):
    """Leaves out the members that Flax and NamedTuple generate."""
    doc = getattr(obj, "__doc__", None) or ""
    generated = name == "replace" or doc.startswith("Alias for field number")
    return True if generated else None


def mathml(display):
    """Returns a visitor that writes an equation as MathML, which needs no script."""

    def visit(translator, node):
        text = latex2mathml.converter.convert(node.astext(), display=display)
        translator.body.append(f"<div>{text}</div>" if display == "block" else text)
        raise nodes.SkipNode

    return visit


def setup(app):
    """Connects the functions above to Sphinx."""
    app.connect("source-read", link_out)
    # Before napoleon, which has priority 500.
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=400)
    app.connect("autodoc-skip-member", skip_generated)
    app.add_html_math_renderer(
        "mathml", (mathml("inline"), None), (mathml("block"), None)
    )
