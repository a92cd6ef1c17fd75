"""A headless Chromium for tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
MISSING = (
    "needs chromium: apt-get install chromium"
    if CHROMIUM is None
    else "needs playwright: pip install playwright"
    if find_spec("playwright") is None
    else ""
)


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window; see Playwright's `Browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Seen:
    """A page that notes its requests and its errors.

    Args:
        browser: that opens it.
        given: of `Browser.new_page`, such as `viewport`.
    """

    def __init__(self, browser: Any, **given: Any) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page = browser.new_page(**given)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def flag(self, name: str) -> str | None:
        """A `data-` attribute of the document."""
        found: str | None = self.page.evaluate(f"document.documentElement.dataset[{name!r}] ?? null")
        return found
