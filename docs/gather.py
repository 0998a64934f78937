"""Gather what the documentation's site is built from: `python docs/gather.py build/docs [mermaid.min.js]`.

The pages are read on a code host as well, so some of them are outside docs/, and they link to each other by
their paths in the repository. In the site each page has a place of its own: links to pages are changed to
match, and any other file that a page links to (a script, a dashboard, an image) is copied to `files/`.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

ROOT = Path(__file__).resolve().parents[1]
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "deploy/README.md": "deploy.md",
    "docs/benchmarks/README.md": "benchmarks.md",
    "examples/third_party_worker/README.md": "example-package.md",
}
"""Pages that have another place in the site than in docs/, by their path in the repository."""

MERMAID = "files/mermaid.min.js"

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[)#])")
_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def gather(folder: Path, mermaid: Path | None = None) -> None:
    """Write the pages of the site, what they link to, and its configuration into `folder`.

    `mermaid` draws the diagrams. Without it, pages with a diagram load it from a CDN.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages = {*MOVED, *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))}
    for page in sorted(pages):
        text = (ROOT / page).read_text(encoding="utf-8")
        _write(folder / "pages" / _place(page), _page(text, page, mermaid).encode())
        for link in _LINK.findall(text):
            linked = normpath(join(dirname(page), link))
            if linked not in pages and (ROOT / linked).is_file():
                _write(folder / "pages" / _place(linked), (ROOT / linked).read_bytes())
    if mermaid:
        _write(folder / "pages" / MERMAID, mermaid.read_bytes())
    _write(folder / "zensical.toml", (ROOT / "docs" / "zensical.toml").read_bytes())


def _page(text: str, page: str, mermaid: Path | None) -> str:
    text = _with_links_moved(text, page)
    if mermaid is None or "```mermaid" not in text:
        return text
    script = relpath(MERMAID, dirname(_place(page)) or ".")
    return f'{text}\n<script src="{script}"></script>\n'


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _with_links_moved(text: str, page: str) -> str:
    def moved(link: re.Match[str]) -> str:
        linked = normpath(join(dirname(page), link[1]))
        return relpath(_place(linked), dirname(_place(page)) or ".")

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def _place(path: str) -> str:
    """Where a path of the repository is in the site."""
    if path in MOVED:
        return MOVED[path]
    if path.startswith("docs/") and path.endswith(".md"):
        return path.removeprefix("docs/")
    return f"files/{path}"


if __name__ == "__main__":
    gather(*map(Path, sys.argv[1:]))
