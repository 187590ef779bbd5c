"""Docstrings match signatures, and public names are documented and tested."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import vagram_jax

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("vagram_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")])
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def definitions(kinds):
    """Every public definition at module level of these kinds, with where it is."""
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, kinds) and not node.name.startswith("_"):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def section(node, title):
    """The names that a section of a docstring explains; None without the section."""
    lines = (ast.get_docstring(node) or "").splitlines()
    if f"{title}:" not in lines:
        return None
    rest = lines[lines.index(f"{title}:") + 1 :]
    indent = re.match(" *", rest[0])[0]  # deeper lines continue an entry
    names = []
    for line in rest:
        if line and not line.startswith(" "):
            break
        entry = re.match(
            rf"{indent}(\*{{0,2}}\w+(?:, \*{{0,2}}\w+)*)(?: \(.*?\))?:", line
        )
        names += entry[1].split(", ") if entry else []
    return names


def own_nodes(node):
    """The nodes of a function without those of the functions inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
            yield child
            yield from own_nodes(child)


def parameters(node):
    """The parameters of a function, as an Args section names them."""
    arguments = node.args
    names = [each.arg for each in [*arguments.posonlyargs, *arguments.args]]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [each.arg for each in arguments.kwonlyargs]
    return names + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else [])


def fields(node):
    """The annotated fields of a class, without class variables and private ones."""
    return [
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and "ClassVar" not in ast.unparse(each.annotation)
        and not each.target.id.startswith("_")
    ]


def test_sections_of_functions_match_their_signatures():
    """A section may be left out; what it lists must be right and in order."""
    errors = []
    for place, node in definitions(FUNCTIONS):
        listed = section(node, "Args") or []
        known = [name for name in parameters(node) if name in listed]
        if listed != known:
            errors.append(f"{place}: Args lists {listed}; in the signature: {known}")
        nodes = [*own_nodes(node)]
        returns = any(isinstance(each, ast.Return) and each.value for each in nodes)
        yields = any(isinstance(each, ast.Yield | ast.YieldFrom) for each in nodes)
        if section(node, "Returns") is not None and (yields or not returns):
            errors.append(f"{place}: Returns, but it returns nothing")
        if section(node, "Yields") is not None and not yields:
            errors.append(f"{place}: Yields, but it yields nothing")
        raised = {
            ast.unparse(each.exc.func).split(".")[-1]
            for each in nodes
            if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call)
        }
        raises = section(node, "Raises")
        if raises is not None and (missing := raised - {*raises}):
            errors.append(f"{place}: Raises doesn't list {sorted(missing)}")
    assert errors == []


def test_attributes_sections_list_the_fields():
    """Those of dataclasses; other classes set theirs in methods."""
    errors = [
        f"{place}: Attributes lists {listed}; the fields are {fields(node)}"
        for place, node in definitions(ast.ClassDef)
        if fields(node)
        and (listed := section(node, "Attributes")) not in (None, fields(node))
    ]
    assert errors == []


def test_public_docstrings_begin_with_a_sentence():
    errors = [
        place
        for place, node in definitions((*FUNCTIONS, ast.ClassDef))
        if not (ast.get_docstring(node) or "").split("\n")[0].strip()
    ]
    assert errors == []


def test_section_reads_every_form_of_entry():
    code = '''
def sample():
    """Returns nothing.

    Args:
      one: a line
        and: its continuation, with a colon
      two, three: both.
      *rest: more.
      **options (dict): more still.

    Returns:
      Nothing: really.
    """
'''
    node = ast.parse(code).body[0]
    assert section(node, "Args") == ["one", "two", "three", "*rest", "**options"]
    assert section(node, "Raises") is None


def test_type_checkers_see_the_public_names():
    """The imports under TYPE_CHECKING are those of the table of lazy names."""
    tree = ast.parse((ROOT / "vagram_jax/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module.removeprefix("vagram_jax.")
        for node in block.body
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == vagram_jax._MODULE_OF
    assert vagram_jax.__all__ == sorted(seen)


def test_public_names_exist_are_documented_and_tested():
    reference = (ROOT / "docs/api.md").read_text()
    tests = "".join(
        path.read_text()
        for path in ROOT.glob("tests/**/*.py")
        if path != Path(__file__)
    )
    errors = []
    for name in vagram_jax.__all__:
        if not inspect.getdoc(getattr(vagram_jax, name)):
            errors.append(f"{name} has no docstring")
        if not re.search(rf"\b{name}\b", reference):
            errors.append(f"{name} isn't in docs/api.md")
        # The tests of the losses take them from the registry, by name.
        if not re.search(rf"\b({name}|{name.removesuffix('_loss')})\b", tests):
            errors.append(f"{name} isn't tested")
    assert errors == []


def test_submodules_are_attributes_and_unknown_names_are_refused():
    assert vagram_jax.mbpo is importlib.import_module("vagram_jax.mbpo")
    assert set(vagram_jax.__all__) <= set(dir(vagram_jax))
    with pytest.raises(AttributeError, match="no attribute 'vagram_los'"):
        _ = vagram_jax.vagram_los
