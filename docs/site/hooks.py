"""Turns the repository's Markdown into pages: the README is the first, and a link to a file is one to its source.

Links are written for a reader of the repository, relative to the file that they stand in. Those that leave docs/ lead
to a page with the file's text, ``models/elsa.py#L16`` to its line; to a folder, to a list of what is in it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[2]
AT_THE_TOP = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]*)(#[^)\s]*)?(?=\))")


def origin(page: str) -> str:
    """The file in the repository, from its top, that a page was made of."""
    return next((name for name, made in AT_THE_TOP.items() if made == page), f"docs/{page}")


def page_of(target: str) -> str:
    """The page that shows a file or folder of the repository."""
    if target in AT_THE_TOP:
        return AT_THE_TOP[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"source/{target}/index.md" if (ROOT / target).is_dir() else f"source/{target}.md"


def targets(text: str, page: str) -> set[str]:
    """What the links of a page lead to, in the repository."""
    beside = posixpath.dirname(origin(page))
    return {posixpath.normpath(posixpath.join(beside, link)) for link, _ in LINK.findall(text) if link}


def shown(target: str) -> str:
    """A page with the text of a file, or what is in a folder.

    Raises:
        PluginError: there is no such file.
    """
    path = ROOT / target
    if path.is_dir():
        inside = sorted(one.name + "/" * one.is_dir() for one in path.iterdir() if not one.name.startswith((".", "__")))
        return "\n".join([f"# {target}/", "", *(f"- `{name}`" for name in inside if not name.endswith(".so"))])
    if not path.is_file():
        raise PluginError(f"a link leads to {target}, which does not exist")
    # As HTML: MkDocs then sees the anchors of the lines, and misses one that is not there.
    form = HtmlFormatter(cssclass="highlight", linenos="table", lineanchors="L", anchorlinenos=True, wrapcode=True)
    try:
        lexer = get_lexer_for_filename(path.name, stripnl=False)
    except ClassNotFound:  # LICENSE
        lexer = TextLexer(stripnl=False)
    code = highlight(path.read_text(), lexer, form)
    return f"---\nhide: [toc]\n---\n\n# {target}\n\n{code}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "extra.css", content=(ROOT / "docs/site/extra.css").read_text()))
    for name, page in AT_THE_TOP.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    linked = {one for file in files.documentation_pages() for one in targets(file.content_string, file.src_uri)}
    for target in sorted(linked):
        if page_of(target).startswith("source/"):
            files.append(
                File.generated(config, page_of(target), content=shown(target), inclusion=InclusionLevel.NOT_IN_NAV)
            )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    beside = posixpath.dirname(origin(here))

    def led(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        if not link:
            return match[0]
        target = posixpath.normpath(posixpath.join(beside, link))
        made = "index.md" if target == "docs" else page_of(target)
        anchor = re.sub(r"^#L(\d+)$", r"#L-\1", anchor)
        return posixpath.relpath(made, posixpath.dirname(here) or ".") + anchor

    return LINK.sub(led, markdown)
