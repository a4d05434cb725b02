"""Return the text of an HTML page as a reader sees it: one line per block, without tags, scripts or styles."""

import re
from html.parser import HTMLParser

# Elements that start on a new line and end their line.
_BLOCKS = frozenset(
    "address article aside blockquote body br caption dd details dialog div dl dt fieldset figcaption figure footer"
    " form h1 h2 h3 h4 h5 h6 head header hr html legend li main nav ol optgroup option p pre search section select"
    " summary table tbody textarea tfoot thead title tr ul".split()
)
_CELLS = frozenset(("td", "th"))
# Elements whose content is not shown; each has an end tag.
_HIDDEN = frozenset(("script", "style", "template", "noscript", "svg", "math", "object", "iframe"))

_SPACE = re.compile(r"[ \t\n\f\r]+")
_LINE_BREAK = re.compile(r"[ \t]*\n\s*")


def html_text(page: str) -> str:
    """Return the title and the visible text of a page, with entities decoded and white space collapsed."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return _LINE_BREAK.sub("\n", "".join(reader.parts)).strip()


class _Reader(HTMLParser):
    """Collects the text that a page shows, with a line break before and after each block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag in _HIDDEN:
            self._hidden.append(tag)
        self._preformatted += tag == "pre"
        self._separate(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._separate(tag)  # <br/>, or <path/> in a drawing

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        self._preformatted -= tag == "pre" and self._preformatted > 0
        self._separate(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._add(data if self._preformatted else _SPACE.sub(" ", data))

    def parse_marked_section(self, i: int, report: bool = True) -> int:  # noqa: FBT001, FBT002  as in the base class
        """Skip `<![if …]>` and the like up to the next ">", as browsers do; older Pythons raise AssertionError."""
        return self.parse_bogus_comment(i, report)

    def _separate(self, tag: str) -> None:
        if not self._hidden and (tag in _BLOCKS or tag in _CELLS):
            self._add("\n" if tag in _BLOCKS else " ")

    def _add(self, text: str) -> None:
        """Append text; outside <pre>, drop its first space if the text so far is empty or ends in white space."""
        if not self._preformatted and (not self.parts or self.parts[-1].endswith((" ", "\n"))):
            text = text.removeprefix(" ")
        if text:
            self.parts.append(text)
