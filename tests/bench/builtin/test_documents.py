"""Extracting plain text from each format, on small samples written for these tests."""

import gzip
from pathlib import Path

import pytest

from lastword.bench.builtin.documents import (
    Entry,
    Sense,
    html_paragraphs,
    man_entry,
    man_sections,
    rst_entries,
    rst_paragraphs,
    sentences,
    wordnet_entries,
)

RST = """\
Title of the page
=================

The :mod:`tools` module has *three* helpers, see :func:`~tools.deep.turn` and
`the site <https://example.org>`_.

.. function:: turn(angle, *, unit='deg')
   :noindex:

   Turn by *angle*. A negative one
   :func:`turns <turn>` left; ``unit`` is read first.

   .. versionadded:: 3.9

   Works everywhere::

      turn(90)

   .. attribute:: Turner.last

      The last angle.

.. c:function:: int Turn_Go(Turner *t)

   Go on. See :pep:`8`.
"""


def test_rst_entries() -> None:
    assert list(rst_entries(RST)) == [
        Entry(
            "turn(angle, *, unit='deg')",
            "Turn by angle.",
            "A negative one turns left; unit is read first. Works everywhere:",
        ),
        Entry("Turner.last", "The last angle.", ""),
        Entry("int Turn_Go(Turner *t)", "Go on.", "See PEP 8."),
    ]


def test_rst_paragraphs() -> None:
    assert list(rst_paragraphs(RST)) == [
        "The tools module has three helpers, see turn and the site."
    ]


MAN = r"""
.\" a comment
.TH turn 1
.SH NAME
turn, turn\-back \- turn a thing
.SH DESCRIPTION
The
.BR turn (1)
command \fIturns\fR what it is given,
.RB [ \-f ]
included.
.nf
    verbatim
.fi
.PP
It says \(lqdone\(rq\&.
.SH "SEE ALSO"
.BR move (1)
"""


def test_man_page(tmp_path: Path) -> None:
    page = tmp_path / "turn.1.gz"
    page.write_bytes(gzip.compress(MAN.encode()))
    found = man_sections(page)
    assert list(found) == ["NAME", "DESCRIPTION", "SEE ALSO"]
    assert found["DESCRIPTION"] == [
        "The turn(1) command turns what it is given, [-f] included.",
        'It says "done".',
    ]
    assert man_entry(found) == Entry(
        "turn, turn-back", "turn a thing", " ".join(found["DESCRIPTION"])
    )
    assert man_entry({"NAME": ["no summary"], "DESCRIPTION": ["x"]}) is None


def test_html_paragraphs() -> None:
    page = '<p>menu</p><div class="para">\n\tA <em>fine</em> &amp; short\n one.</div>'
    assert list(html_paragraphs(page)) == ["A fine & short one."]


DICT = """\
abide
    v 1: dwell; "You can stay with me while
         you are in town" [syn: {bide}, {abide}]
    2: put up with something [ant: {refuse}]
cold
    adj 1: of low temperature
    n 2: a mild illness; "will they never find a cure?"- Nobody; "he has a cold"
"""


def test_wordnet(tmp_path: Path) -> None:
    path = tmp_path / "wn.dict.dz"
    path.write_bytes(gzip.compress(DICT.encode()))
    assert list(wordnet_entries(path)) == [
        (
            "abide",
            [
                Sense(
                    ("bide", "abide"), "v", "dwell", ("You can stay with me while you are in town",)
                ),
                Sense(("abide",), "v", "put up with something", ()),
            ],
        ),
        (
            "cold",
            [
                Sense(("cold",), "adj", "of low temperature", ()),
                Sense(
                    ("cold",),
                    "n",
                    "a mild illness",
                    ("will they never find a cure?", "he has a cold"),
                ),
            ],
        ),
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two!  Three?", ["One.", "Two!", "Three?"]),
        ("See e.g. the text.", ["See e.g. the text."]),
        ("", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts
