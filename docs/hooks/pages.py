"""Pages that lie elsewhere in the repository, for mkdocs: nothing is kept twice.

The introduction of the README comes before `index.md`; other files become pages of their own, and
notebooks Markdown (they are stored without outputs). Links between them lead to the pages.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: Page -> file of the repository.
PAGES = {
    "format.md": "codecs/tec/FORMAT.md",
    "weights.md": "codecs/tec/weights/README.md",
    "changelog.md": "CHANGELOG.md",
    **{f"notebooks/{p.stem}.md": f"notebooks/{p.name}" for p in ROOT.glob("notebooks/*.ipynb")},
}
#: Where the introduction of the README ends.
END = "## Use it"
_LINK = re.compile(r"!?\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def introduction() -> str:
    """The README up to "Use it", as part of index.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if END not in text:
        raise ValueError(f"README.md has no line {END!r}, where its introduction ends")
    return relinked(text[: text.index(END)], "README.md", "index.md")


def content(page: str) -> str:
    """Markdown of one of `PAGES`."""
    source = PAGES[page]
    text = (ROOT / source).read_text(encoding="utf-8")
    if source.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        parts = [_cell(cell) for cell in cells]
        parts.insert(1, f"*[The notebook]({Path(source).name}), without its outputs.*")
        return "\n\n".join(parts) + "\n"
    return relinked(text, source, page)


def _cell(cell: dict[str, Any]) -> str:
    body = "".join(cell["source"])
    return body if cell["cell_type"] == "markdown" else f"```python\n{body}\n```"


def relinked(text: str, source: str, page: str) -> str:
    """``text`` of a file of the repository with its relative links as a page needs them.

    What has no page loses its link and keeps its words.
    """
    page_of = {file: name for name, file in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if target.startswith("docs/"):
            name = target.removeprefix("docs/")
        elif target in page_of:
            name = page_of[target]
        else:
            return match[1]
        there = posixpath.relpath(name, posixpath.dirname(page) or ".")
        return match[0].replace(f"({match[2]}", f"({there}")

    return _LINK.sub(link, text)


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for page in PAGES:
        files.append(File.generated(config, page, content=content(page)))
        if PAGES[page].endswith(".ipynb"):
            path = PAGES[page]
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    return introduction() + markdown if page.file.src_uri == "index.md" else markdown
