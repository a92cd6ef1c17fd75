"""HtmlPage: the paragraphs that a browser would show of a page."""

import re
from html.parser import HTMLParser
from typing import Any


class HtmlPage(HTMLParser):
    """Is fed with a page, and gives its paragraphs, without scripts and styles."""

    _HIDDEN = frozenset({"script", "style", "template", "noscript"})
    _ENDS_PARAGRAPH = re.compile(
        "address|article|aside|blockquote|body|caption|center|dd|details|dialog|div|dl|dt|fieldset|figcaption|figure|"
        "footer|form|h[1-6]|head|header|hr|html|legend|li|main|menu|nav|ol|option|p|pre|section|select|summary|table|"
        "tbody|td|textarea|tfoot|th|thead|title|tr|ul"
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._fragments: list[str] = []
        self._done: list[str] = []
        self._num_hidden = 0

    def take_paragraphs(self) -> list[str]:
        """Returns the paragraphs since the last call."""
        done, self._done = self._done, []
        return done

    def end_paragraph(self) -> None:
        """Ends the current paragraph."""
        text = " ".join("".join(self._fragments).split())
        self._fragments.clear()
        if text:
            self._done.append(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Ends the paragraph at a tag of block level."""
        self._num_hidden += tag in self._HIDDEN
        if tag == "br":
            self._fragments.append(" ")
        elif self._ENDS_PARAGRAPH.fullmatch(tag):
            self.end_paragraph()

    def handle_endtag(self, tag: str) -> None:
        """Ends the paragraph at a tag of block level."""
        if tag in self._HIDDEN:
            self._num_hidden = max(0, self._num_hidden - 1)
        if self._ENDS_PARAGRAPH.fullmatch(tag):
            self.end_paragraph()

    def handle_data(self, data: str) -> None:
        """Adds text that is not hidden."""
        if not self._num_hidden:
            self._fragments.append(data)
