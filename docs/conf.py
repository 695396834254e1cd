"""How the documentation site is built: `scripts/dev docs`.

The pages are Markdown, so that they can be read where the code is, too. The reference is made from the docstrings of the
mqcore that is installed.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import inspect
import pydoc
import re
import sys
from pathlib import Path

from docutils.nodes import Element, TextElement
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

project = "mqcore"
author = "The mqcore authors"
project_copyright = author
release = importlib.metadata.version("mqcore")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"mqcore {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# As GitHub makes them, so that links to headings are the same there.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
# Docstrings are prose with `names` in it.
default_role = "code"
nitpicky = True
# Where classes are in the reference.
MODULES = ("mqcore", "mqcore.mail", "mqcore.stats", "mqcore.server", "mqcore.testing")
suppress_warnings = ["ref.python"]  # several classes are called Message; the link leads to the nearest
# Types of others, two that say in `server` what may stand in a server's place, and what makes the clients of tests.
nitpick_ignore_regex = [
    ("py:.*", r"(?!mqcore\.).*"),
    ("py:class", r"mqcore\.server\.(control\.Answerer|shown\.Shown)"),
    ("py:class", r"mqcore\.mail\.(smtp|milter)\.server\.\w+"),
]

LINK_UP = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)[^)]*\)")


def leave_out_code(app: Sphinx, name: str, source: list[str]) -> None:
    """What is linked beside this folder is where the code is, and not on the site: the link's text stays."""
    depth = name.count("/")
    source[0] = LINK_UP.sub(lambda link: link[1] if link[2].count("../") > depth else link[0], source[0])


def prose(app: Sphinx, what: str, name: str, subject: object, options: object, lines: list[str]) -> None:
    """What stands indented after a line is an example; `*args` and `mq_` are no markup."""
    if lines and lines[0].startswith("Alias for field number"):  # Python's own words, for the fields of a NamedTuple
        lines[:] = []
        return
    text = "\n".join(lines)
    text = re.sub(r"(^|\n)(\S.*)\n\n(?=    \S)", r"\1\2\n\n::\n\n", text)
    text = re.sub(r"(?<![`*\\])\*(?=\w)", r"\\*", text)
    text = re.sub(r"(?<=\w)_(?=[\s.,;:)'\"-])", r"\\_", text)
    made = signature_in_stub(subject, "__init__") if what == "class" and inspect.isclass(subject) else None
    lines[:] = [*([f"``{name.rpartition('.')[2]}{made[0]}``", ""] if made else ()), *text.split("\n")]


@functools.cache
def stub_of(module: str) -> dict[str, ast.ClassDef]:
    """The classes of the stub of a compiled module; none if it has no stub."""
    path = Path(getattr(sys.modules.get(module), "__file__", None) or "").parent / f"{module.rpartition('.')[2]}.pyi"
    body = ast.parse(path.read_text()).body if path.is_file() else []
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def signature_in_stub(owner: type, wanted: str) -> tuple[str, str] | None:
    """Of a method, without `self`, and what it returns: what is compiled has no types in its signature, and its stub has."""
    for each in inspect.getmro(owner):
        stub = stub_of(each.__module__).get(each.__name__)
        for node in stub.body if stub else ():
            if isinstance(node, ast.FunctionDef) and node.name == wanted:
                arguments = re.sub(r"^(self|cls)(, /)?(, )?", "", ast.unparse(node.args))
                return f"({arguments})", ast.unparse(node.returns) if node.returns else ""
    return None


def signature(
    app: Sphinx, what: str, name: str, subject: object, options: object, shown: str | None, returned: str | None
) -> tuple[str, str] | None:
    owner, _, wanted = name.rpartition(".")
    if shown is None:
        return None  # what has none gets none from Sphinx 9; for classes see `prose`
    found = signature_in_stub(pydoc.locate(owner), wanted) if what == "method" else None
    return found or (re.sub(r"= \[HookSpec\(.*?\)\]", "= MAILERQ_HOOKS", shown), returned or "")


def find_public(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: TextElement) -> Element | None:
    """A class is written in a module of its own, and is in the reference where it is imported from."""
    python = env.get_domain("py")
    target = node.get("reftarget", "")
    name = target.rpartition(".")[2] if node.get("reftype") == "class" else target.removeprefix("mqcore.verdicts.")
    public = next((f"{module}.{name}" for module in MODULES if f"{module}.{name}" in python.objects), None)
    return public and python.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], public, node, shown)


def setup(app: Sphinx) -> None:
    app.connect("source-read", leave_out_code)
    app.connect("autodoc-process-docstring", prose)
    app.connect("autodoc-process-signature", signature)
    app.connect("missing-reference", find_public)
