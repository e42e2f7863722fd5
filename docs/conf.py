"""How the pages of this folder become a site: `make docs` writes it into site/. Nothing is fetched
while it is built.
"""

from __future__ import annotations

import os
import re

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from cover import __version__, config
from cover.cli import help_texts
from cover.experiments.study.study_file import Study
from cover.training.recipe import Recipe

project = "CoVeR"
copyright = "the CoVeR authors, Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["images", "notebooks"]

myst_heading_anchors = 4  # the same anchors that GitHub makes of headings
default_role = "code"  # docstrings have names in single backticks, as Markdown has
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "CoVeR"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_extra_path = ["../studies"]  # the kept reports, at the root of the site


def table_of_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """The sidebar, from the list of pages that index.md is: so there is one list, and it reads well
    without Sphinx too.
    """
    if page == "index":
        for heading, links in re.findall(r"^## (.+)\n((?:.+\n|\n(?!#))*)", source[0], re.MULTILINE):
            pages = "\n".join(re.findall(r"^- \[.+?\]\((\w+)\.\w+\)", links, re.MULTILINE))
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{pages}\n```\n"


def links_to_studies(app: Sphinx, page: str, source: list[str]) -> None:
    """A kept report is Markdown for readers of the repository and HTML for readers of the site."""
    source[0] = re.sub(
        r"\[([^]]+)\]\(\.\./studies/([\w-]+)/report\.md\)", r'<a href="\2/report.html">\1</a>', source[0]
    )


def commands(app: Sphinx, page: str, source: list[str]) -> None:
    """The reference of commands and keys: what `--help` and `--keys` print."""
    if page != "commands":
        return
    os.environ["COLUMNS"] = "100"  # argparse wraps its help at this width
    texts = {f"cover {name}": text for name, text in help_texts().items()}
    texts |= {"Keys of a recipe": "\n".join(config.keys(Recipe)), "Keys of a study": "\n".join(config.keys(Study))}
    for title, text in texts.items():
        block = "\n".join(f"   {line}".rstrip() for line in text.splitlines())
        source[0] += f"\n{title}\n{'-' * len(title)}\n\n.. code-block:: text\n\n{block}\n"


def setup(app: Sphinx) -> None:
    app.connect("source-read", table_of_contents)
    app.connect("source-read", links_to_studies)
    app.connect("source-read", commands)
    app.add_lexer("csv", TextLexer)  # Pygments has none of that name
