"""How the documentation site is built: `scripts/dev docs`.

The pages are Markdown, so that they can be read where the code is, too. The reference is made from the docstrings of the
mqcore that is installed.
"""

from __future__ import annotations

import importlib.metadata
import re

from sphinx.application import Sphinx

project = "mqcore"
author = "The mqcore authors"
project_copyright = author
release = importlib.metadata.version("mqcore")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"mqcore {release}"

# As GitHub makes them, so that links to headings are the same there.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
# The signatures of compiled functions have no types; the stubs have.
autodoc_typehints = "none"
# Docstrings are prose with `names` in it.
default_role = "code"
nitpicky = True

LINK_UP = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)[^)]*\)")


def leave_out_code(app: Sphinx, name: str, source: list[str]) -> None:
    """What is linked beside this folder is where the code is, and not on the site: the link's text stays."""
    depth = name.count("/")
    source[0] = LINK_UP.sub(lambda link: link[1] if link[2].count("../") > depth else link[0], source[0])


def prose(app: Sphinx, what: str, name: str, subject: object, options: object, lines: list[str]) -> None:
    """What stands indented after a line is an example; `*args` and `mq_` are no markup."""
    text = "\n".join(lines)
    text = re.sub(r"(^|\n)(\S.*)\n\n(?=    \S)", r"\1\2\n\n::\n\n", text)
    text = re.sub(r"(?<![`*\\])\*(?=\w)", r"\\*", text)
    text = re.sub(r"(?<=\w)_(?=[\s.,;:)'\"-])", r"\\_", text)
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> None:
    app.connect("source-read", leave_out_code)
    app.connect("autodoc-process-docstring", prose)
