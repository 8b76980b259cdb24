"""The pages of the documentation: they are all there, lead somewhere, and what they show runs."""

from __future__ import annotations

import importlib.util
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def _hook() -> Any:
    spec = importlib.util.spec_from_file_location("pages", DOCS / "hooks" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOK = _hook()
PAGES = {
    **{str(p.relative_to(DOCS).as_posix()): p.read_text("utf-8") for p in DOCS.rglob("*.md")},
    **{page: HOOK.content(page) for page in HOOK.PAGES},
}
PAGES["index.md"] = HOOK.introduction() + PAGES["index.md"]
#: Other tests run the examples of the README and the notebooks.
EXAMPLES = [p for p in PAGES if p not in HOOK.PAGES and p != "index.md" and "```python" in PAGES[p]]


def _in_nav(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry)
            for page in _in_nav(part)]  # fmt: skip


def test_navigation_and_pages_agree():
    nav = _in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(nav) == sorted(PAGES)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    folder = posixpath.dirname(page)
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose):
        path = posixpath.normpath(posixpath.join(folder, target))
        there = path in PAGES or (DOCS / path).is_file() or path in HOOK.PAGES.values()
        assert there, f"{page}: {target}"


def test_links_of_the_repository_become_links_of_pages():
    text = "[a](codecs/tec/FORMAT.md#layout) [b](docs/design.md) [c](LICENSE) [d](https://e.org/f)"
    expected = "[a](../format.md#layout) [b](../design.md) c [d](https://e.org/f)"
    assert HOOK.relinked(text, "README.md", "howto/x.md") == expected


@pytest.mark.parametrize("page", [p for p in sorted(PAGES) if p.startswith("reference/")])
def test_reference_names_what_there_is(page):
    names = re.findall(r"^::: (\S+)$", PAGES[page], flags=re.MULTILINE)
    assert len(names) > 5
    for name in names:
        _resolve(name)


def test_reference_is_complete():
    """Every public name of both packages has its place (accessors under their module's name)."""
    import tec

    import xtec

    text = PAGES["reference/xtec.md"] + PAGES["reference/tec.md"]
    for package in (xtec, tec):
        for name in set(package.__all__) - {"__version__"}:
            assert re.search(rf"\b{package.__name__}\.(\w+\.)*{name}$", text, re.MULTILINE), name


def _resolve(name: str) -> Any:
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        if importlib.util.find_spec(parts[0]) is None:
            break
        try:
            found = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            found = getattr(found, part)
        return found
    raise LookupError(f"the reference names {name}, which cannot be imported")


@pytest.mark.parametrize("page", sorted(EXAMPLES))
def test_python_examples_run(page, tmp_path, monkeypatch):
    """All blocks of a page, in order, in one namespace."""
    if "distributed" in PAGES[page]:
        pytest.importorskip("distributed", reason="the extra 'distributed' is optional")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_site_is_built_without_a_warning(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="the extra 'docs' is optional: make docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "notebooks" / "01-first-steps" / "index.html").is_file()
