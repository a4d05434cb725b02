"""HTML becomes the text that a reader sees."""

import random

import pytest

from lastword.cli.documents.html_text import html_text

PAGES = {
    "blocks": ("<h1>A</h1><p>b<p>c<div>d<div>e</div>f</div>", "A\nb\nc\nd\ne\nf"),
    "inline": ("<p>a<b>b</b>c <i> d</i>\n\t e</p>", "abc d e"),
    "entities": ("<p>&lt;b&gt; &amp; &eacute;&#8364;&nbsp;x &unknown;</p>", "<b> & é€\xa0x &unknown;"),
    "title": ("<html><head><title>T</title><meta charset=utf-8></head><body>x</body>", "T\nx"),
    "scripts": ("a<script>if (1 < 2) '<p>no'</script>b<style>p {}</style>c", "abc"),
    "hidden": ("a<template><p>no</template><noscript>no</noscript><svg><text>no</text></svg>b", "ab"),
    "self-closed": ("<svg><path/><g>no</g></svg>a<br/>b<hr>c", "a\nb\nc"),
    "comments": ("a<!-- <p>no -->b<!DOCTYPE html><![CDATA[c]]>d", "abd"),
    "of a word processor": ("a<![if !supportLists]>b<![endif]><![x<![ ><p>c", "ab\nc"),
    "preformatted": ("<pre>a  b\n    c\n\nd</pre>e   f", "a  b\nc\nd\ne f"),
    "table": ("<table><tr><th>a<th>b<tr><td>1</td><td>2</td></table>", "a b\n1 2"),
    "list": ("<ul><li>a<li>b<ol><li>c</ol></ul>d", "a\nb\nc\nd"),
    "end without beginning": ("a</script></pre></div>b   c", "a\nb c"),
    "unclosed": ("a<p>b<script>no", "a\nb"),
    "inner tags left open": ("<svg><title>no</svg>a", "a"),
    "half a tag": ("a < b <", "a < b <"),
    "no tags": ("plain\n\n text", "plain text"),
    "upper case": ("<P>a<SCRIPT>no</SCRIPT><BR>b", "a\nb"),
    "empty": ("", ""),
    "deep": ("<div>" * 20_000 + "x", "x"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_text_of_a_page(name):
    page, text = PAGES[name]
    assert html_text(page) == text


def test_any_soup_of_tags_has_a_text():
    parts = (
        "<![ > <! -- [ ] ]]> CDATA if <p </ /> p> script <script> </script> & &# &#x &amp ; x ' \" = <? ?> <pre> </pre>"
        " \0 é <!-- --> <![if <!DOCTYPE <!DOCTYPE[ <!ENTITY 99999999999 <td> <svg> </svg> <br/>".split()
    )
    draw = random.Random(0)
    for _ in range(3000):
        page = "".join(draw.choices([*parts, " ", "\n"], k=draw.randint(1, 12)))
        assert isinstance(html_text(page), str)
