"""Extract plain text from the formats in the Debian packages: reStructuredText, manual pages, HTML, the dict format.

This module only handles formats; `corpus.py` decides which texts are trained on and which are held out.
"""

import gzip
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\]\"'][.!?])\s+(?=[A-Z\"'(])")


@dataclass(frozen=True)
class Entry:
    """The documentation of a function, a command or the like: its name, a one-line summary, and the rest (`body`)."""

    name: str
    summary: str
    body: str


@dataclass(frozen=True)
class Sense:
    """One meaning in WordNet: the words with this meaning, their part of speech, a gloss and example sentences."""

    words: tuple[str, ...]
    part: str
    gloss: str
    examples: tuple[str, ...]


def squeeze(text: str) -> str:
    """Replace every run of white space by one space."""
    return " ".join(text.split())


def sentences(text: str) -> list[str]:
    """Split a paragraph into sentences; when in doubt, two sentences stay together."""
    return [part for part in _SENTENCE_END.split(squeeze(text)) if part]


# Python's documentation: reStructuredText.

_DIRECTIVE = re.compile(
    r"^(?P<indent> *)\.\. (?:py:|c:)?(?:function|method|class|exception|attribute|data|decorator|classmethod"
    r"|staticmethod|opcode|pdbcommand|macro|type|member|var|coroutinefunction|coroutinemethod):: *(?P<name>.+)$"
)
_ROLE_WITH_TITLE = re.compile(r"(?::[\w:+-]+:)?`([^`<]+?)\s*<[^`>]+>`_{0,2}", re.DOTALL)
_FIELD = re.compile(r"^\s*:[\w ]+:(?!`)")  # ":noindex:", ":param x: ..."; ":func:`x`" is a role
_ROLE = re.compile(r":[\w:+-]+:`([~!]?)([^`]+)`")


def rst_entries(text: str) -> Iterator[Entry]:
    """Yield an entry for each directive of a page; the first sentence is the summary, the rest is the body."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if found := _DIRECTIVE.match(line):
            inside = _split_indented(lines[i + 1 :], len(found["indent"]))
            paragraphs = list(rst_paragraphs("\n".join(inside)))
            if paragraphs:
                first = sentences(paragraphs[0])
                signature = squeeze(_rst_plain(found["name"].replace("\\", "")))
                rest = [" ".join(first[1:]), *paragraphs[1:]]
                body = " ".join(part for part in rest if part)
                yield Entry(signature, first[0], body)


def rst_paragraphs(text: str) -> Iterator[str]:
    """Yield a page's paragraphs of prose, but no nested directives, code or headings."""
    lines = text.splitlines()
    base = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    for block in re.split(r"\n\s*\n", "\n".join(line[base:] for line in lines)):
        first = block.lstrip("\n")
        if not first or first[0] in " .:>+=-*|#^~" or _is_heading(first):
            continue
        plain = squeeze(_rst_plain(first.replace("::", ":")))
        if plain:
            yield plain


def _is_heading(block: str) -> bool:
    lines = block.splitlines()
    return len(lines) > 1 and bool(re.fullmatch(r"([=\-~^\"*#+'])\1{2,}\s*", lines[1]))


def _split_indented(lines: list[str], indent: int) -> list[str]:
    """Return the lines that belong to a directive (they are indented more than `indent`), up to a nested directive."""
    inside: list[str] = []
    for line in lines:
        if line.strip():
            if len(line) - len(line.lstrip()) <= indent:
                break
            if _DIRECTIVE.match(line):
                break
        inside.append(line)
    return [line for line in inside if not _FIELD.match(line)]


def _rst_plain(text: str) -> str:
    text = _ROLE_WITH_TITLE.sub(r"\1", text)
    text = re.sub(r":pep:`(\d+)`", r"PEP \1", text)
    text = _ROLE.sub(lambda m: m[2].split(".")[-1] if m[1] == "~" else m[2], text)
    text = re.sub(r"``([^`]*)``", r"\1", text)
    text = re.sub(r"`([^`]+)`_{0,2}", r"\1", text)
    text = re.sub(r"(?<![\w*])\*{1,2}([^*\s][^*]*?)\*{1,2}(?![\w*])", r"\1", text)
    return re.sub(r"\\(.)", r"\1", text)


# Manual pages: roff with the `man` macros.

_FONT = re.compile(r"\\f(?:\[[^]]*\]|\(..|.)|\\[&/,|^:]|\\s[-+]?\d|\\m\[[^]]*\]")
_GLYPHS = {
    r"\-": "-", r"\e": "\\", r"\(aq": "'", r"\(dq": '"', r"\(bu": "", r"\(lq": '"', r"\(rq": '"',
    r"\(em": " - ", r"\(en": "-", r"\(co": "(c)", r"\(ti": "~", r"\(ha": "^", r"\(rs": "\\",
    r"\ ": " ", r"\~": " ", r"\(cq": "'", r"\(oq": "'", r"\(->": "->", r"\(mu": "x", r"\(+-": "+-",
}  # fmt: skip
_BREAKS = {"PP", "P", "LP", "TP", "IP", "HP", "sp", "RS", "RE", "TQ", "br", "SS"}


def man_sections(path: Path) -> dict[str, list[str]]:
    """Read a manual page and return its paragraphs by section title, leaving out listings and tables."""
    raw = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    sections: dict[str, list[str]] = {}
    paragraphs: list[str] = []
    verbatim = False
    for line in raw.splitlines():
        macro, _, rest = line[1:].partition(" ") if line[:1] in ".'" else ("", "", line)
        macro = macro.strip()
        if macro in ("nf", "EX", "TS", "in"):
            verbatim = macro != "in" or bool(rest.strip())
        elif macro in ("fi", "EE", "TE"):
            verbatim = False
        elif macro == "SH":
            verbatim = False
            paragraphs = sections.setdefault(_roff_plain(rest.strip(' "')).upper(), [""])
        elif macro in _BREAKS:
            paragraphs.append("")
        elif not verbatim and paragraphs and not macro.startswith('\\"'):
            paragraphs[-1] += " " + _roff_line(macro, rest)
    return {title: [squeeze(p) for p in parts if p.strip()] for title, parts in sections.items()}


def man_entry(sections: dict[str, list[str]]) -> Entry | None:
    """Make a manual page's entry: summary from the section NAME, body from DESCRIPTION; None if one is missing."""
    name, dash, summary = " ".join(sections.get("NAME", [])).partition(" - ")
    body = " ".join(sections.get("DESCRIPTION", []))
    if not dash or not body:
        return None
    return Entry(name.strip(), summary.strip(), body)


def _roff_line(macro: str, rest: str) -> str:
    if macro in ("B", "I", "SM", "SB"):
        return _roff_plain(rest.replace('"', ""))
    if macro in ("BR", "BI", "IB", "IR", "RB", "RI"):
        words = re.findall(r'"([^"]*)"|(\S+)', rest.replace(r"\ ", "\N{NO-BREAK SPACE}"))
        return _roff_plain("".join(quoted or plain for quoted, plain in words))
    return "" if macro else _roff_plain(rest)


def _roff_plain(text: str) -> str:
    text = _FONT.sub("", text)
    for glyph, plain in _GLYPHS.items():
        text = text.replace(glyph, plain)
    text = re.sub(r"\\\*?(?:\[[^]]*\]|\(..)", "", text)
    return re.sub(r'\\(?:".*|.)', "", text)


# The Debian handbook: HTML.


def html_paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a DocBook page."""
    for block in re.findall(r'<div class="para">(.*?)</div>', text, re.DOTALL):
        plain = squeeze(html.unescape(re.sub(r"<[^>]+>", "", block)))
        if plain:
            yield plain


# WordNet: the dict format.

_SENSE = re.compile(r"^\s{2,}(?:(n|v|adj|adv) )?(?:\d+): ")


def wordnet_entries(path: Path) -> Iterator[tuple[str, list[Sense]]]:
    """Yield each headword with its senses in order."""
    head, lines = "", list[str]()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith(" "):
                if head:
                    yield head, list(_senses(head, lines))
                head, lines = line.strip(), []
            else:
                lines.append(line)
    yield head, list(_senses(head, lines))


def _senses(head: str, lines: list[str]) -> Iterator[Sense]:
    part, texts = "n", list[tuple[str, str]]()
    for line in lines:
        if found := _SENSE.match(line):
            part = found[1] or part
            texts.append((part, line[found.end() :]))
        elif texts:
            texts[-1] = (texts[-1][0], texts[-1][1] + line)
    for part, text in texts:
        plain, _, tail = squeeze(text).partition(" [syn: ")
        words = re.findall(r"\{([^}]+)\}", tail.partition("]")[0]) or [head]
        plain = re.sub(r"\s*\[(?:ant|also): .*$", "", plain)
        examples = re.findall(r'"([^"]+)"', plain)
        gloss = re.sub(r'[;:]?\s*"[^"]*"(?:\s*-\s*[^;"]+)?', "", plain).strip(" ;")
        yield Sense(tuple(words), part, gloss, tuple(examples))
