# SPDX-License-Identifier: Apache-2.0
"""Takes what the pages link to outside ``docs`` into the site, as mkdocs hooks.

Pages link to sources as on a host of repositories: ``../tal_fast/ops/nms.py``. Markdown becomes a
page of the site, a source file a page that shows it, a folder a list of its files; anything else is
copied. What is missing is left as it stands, and mkdocs, which is strict here, names it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LANGUAGES = {
    ".py": "python", ".cpp": "cpp", ".h": "cpp", ".cu": "cuda", ".cuh": "cuda", ".txt": "cmake",
    ".toml": "toml", ".yml": "yaml", "": "text",
}  # fmt: skip
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_FOREIGN = re.compile(r'<script src="https?://[^"]*"></script>')
_listings: dict[str, str] = {}


def place(path: str) -> str:
    """Returns where a file of the project is in the site.

    Args:
        path: from the project's root.
    """
    inside = path.removeprefix("docs/").removeprefix(".")  # mkdocs leaves out hidden folders
    source = ROOT / path
    if source.is_dir():
        own = [name for name in ("index.md", "README.md") if (source / name).is_file()]
        inside = f"{inside}/{own[0] if own else 'index.md'}"
    elif source.suffix in LANGUAGES and not path.startswith("docs/"):
        inside = f"{inside}.md"
    return inside if path.startswith("docs/") else f"source/{inside}"


def targets(text: str, path: str) -> set[str]:
    """Returns the files of the project that a page links to, from the root."""
    folder = posixpath.dirname(path)
    found = {
        posixpath.normpath(posixpath.join(folder, match[1]))
        for match in _LINK.finditer(_FENCE.sub("", text))
    }
    return {path for path in found if not path.startswith("..") and (ROOT / path).exists()}


def placed(text: str, path: str) -> str:
    """Returns a page of the project with its links as they are in the site."""
    folder, here = posixpath.dirname(path), posixpath.dirname(place(path))

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if target.startswith("..") or not (ROOT / target).exists():
            return match[0]
        return posixpath.relpath(place(target), here or ".") + (match[2] or "")

    parts = _FENCE.split(text)
    parts[::2] = [_LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def listing(path: str) -> str:
    """Returns a page that lists the files of a folder."""
    names = sorted(entry.name for entry in (ROOT / path).iterdir() if entry.is_file())
    return f"# {path}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)


def shown(path: str) -> str:
    """Returns a page that shows a source file."""
    source = ROOT / path
    text = source.read_text("utf-8")
    return f"# {path}\n\n``````{LANGUAGES[source.suffix]}\n{text}\n``````\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds what the pages link to, and what that links to in turn."""
    from mkdocs.structure.files import File

    style = str(Path(__file__).with_name("site.css"))
    files.append(File.generated(config, "site.css", abs_src_path=style))
    known = {file.src_uri for file in files}
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        if (ROOT / page).suffix != ".md" or (ROOT / page).is_dir():
            continue
        for target in targets((ROOT / page).read_text("utf-8"), page):
            uri = place(target)
            if uri in known:
                continue
            known.add(uri)
            source = ROOT / target
            if source.is_dir():
                content = listing(target)
            elif source.suffix in LANGUAGES:
                content = shown(target)
            elif source.suffix == ".md":
                content = placed(source.read_text("utf-8"), target)
            else:
                files.append(File.generated(config, uri, abs_src_path=str(source)))
                continue
            _listings[uri] = content
            files.append(File.generated(config, uri, content=content))
            waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links of a page under ``docs`` to those of the site."""
    if page.file.src_uri in _listings:
        return markdown
    return placed(markdown, f"docs/{page.file.src_uri}")


def on_post_page(output: str, **_: Any) -> str:
    """Puts our own script where the theme would load one from elsewhere."""
    own = (Path(__file__).with_name("search_from_disk.js")).read_text("utf-8")
    return _FOREIGN.sub(lambda _: f"<script>{own}</script>", output)


def on_post_template(output_content: str, **_: Any) -> str:
    """Does the same for the page of what is not found."""
    return on_post_page(output_content)
