"""Which files of the repository are pages of the site, and what links between files become there."""

import os
import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent.parent
PAGES = {
    "index.md": "README.md",
    "examples.md": "examples/README.md",
    "launching.md": "launch/README.md",
    "recipes/bert.md": "recipes/bert/README.md",
    "recipes/progressive_gan.md": "recipes/progressive_gan/README.md",
    "recipes/translation_gan.md": "recipes/translation_gan/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Page of the site -> the file that it shows, both with `/`. All other pages are files of docs/."""

_LINK = re.compile(r"\[(?P<text>[^][]+)\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def relinked(markdown: str, page: str) -> str:
    """`markdown` of `page` with links between files of the repository as links between pages.

    A file that is no page is named without a link. What does not exist stays as it is, and MkDocs warns of it.

    Example:
        >>> relinked("[BERT](recipes/bert/README.md#text), [here](docs/data.md)", "index.md")
        '[BERT](recipes/bert.md#text), [here](data.md)'
    """
    source = PurePosixPath(PAGES.get(page, f"docs/{page}"))
    shown = {file: name for name, file in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        path = os.path.normpath(source.parent / match["target"])
        target = shown.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if target is not None:
            relative = os.path.relpath(target, PurePosixPath(page).parent)
            return f"[{match['text']}]({relative}{match['anchor'] or ''})"
        if (ROOT / path).exists():
            text = match["text"]
            return text if "`" in text else f"{text} (`{path}`)"
        return match[0]

    return _LINK.sub(link, markdown)
