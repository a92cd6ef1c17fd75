"""MkDocs calls this: pages that lie elsewhere in the repository, and parts of pages that are made from its files.

A comment `<!-- generated: NAME ARGUMENTS -->` in a page is replaced by what `GENERATORS[NAME]` returns.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
if str(ROOT) not in sys.path:  # `mkdocs` is a script elsewhere, and puts its own folder there
    sys.path.insert(0, str(ROOT))

from docs.generators import configuration, layers, machines, results, sources  # noqa: E402

GENERATORS: dict[str, Callable[..., str]] = {
    "configuration": configuration.reference,
    "layers": layers.picture,
    "machines": machines.machines,
    "packages": layers.table_of_packages,
    "results": results.table,
}
_PLACE = re.compile(r"^<!-- generated: (\w+)((?: \S+)*) -->$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are no files of docs/."""
    for page, source in sources.PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fills in the generated parts of a page, and its links."""
    markdown = _PLACE.sub(lambda match: GENERATORS[match[1]](*match[2].split()), markdown)
    return sources.relinked(markdown, page.file.src_uri)
