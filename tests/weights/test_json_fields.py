"""Strict JSON: anything else is refused with a one-line message, without importing torch."""

import subprocess
import sys
import tracemalloc

import pytest
from helpers.messages import refusal

from lastword.errors import ConfigError, InputError
from lastword.weights import parse_json, parse_object
from lastword.weights.json_fields import show_value

# Each content as bytes and as text, and the error's parts: what, got.
BAD = {
    "": ("not valid JSON (column 1: a value is missing)", None),
    '{"a": nope}': ("not valid JSON (column 7: a value is missing)", None),
    '{"a":\n\n nope}': ("not valid JSON (line 3, column 2: a value is missing)", None),
    '{"a": 1} 2': ("not valid JSON (column 10: something follows after the end)", None),
    '{"a": 1 "b"}': ("not valid JSON (column 9: a comma or a closing bracket is missing)", None),
    '{"a" 1}': ("not valid JSON (column 6: a colon is missing)", None),
    "{a: 1}": ("not valid JSON (column 2: a name in double quotes is missing)", None),
    '["\\q"]': ("not valid JSON (column 3: a backslash before a character that needs none)", None),
    '["\\u12"]': ("not valid JSON (column 4: \\u without four hexadecimal digits)", None),
    '["\t"]': ("not valid JSON (column 3: a control character that is not escaped)", None),
    '["x]': ("not valid JSON (column 2: a string has no closing quote)", None),
    "9" * 5000: ("not valid JSON (an integer has too many digits)", None),
    '{"a": NaN}': ("not valid JSON (it contains NaN)", None),
    '{"a": [-Infinity]}': ("not valid JSON (it contains -Infinity)", None),
    '{"a": {"b": 1, "c": 2, "b": 3}}': ('not valid JSON (key "b" occurs twice)', None),
    "[" * 200_000: ("not valid JSON (nested too deeply)", None),
    "7": ("wrong content", "7"),
    '"text"': ("wrong content", '"text"'),
    "null": ("wrong content", "null"),
}


@pytest.mark.parametrize("encoded", [False, True], ids=["text", "bytes"])
@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_not_json_is_refused(text, encoded):
    what, got = BAD[text]
    with pytest.raises(InputError) as caught:
        parse_json(text.encode() if encoded else text, "a.jsonl:3", InputError)
    expected = None if got is None else "a JSON object"
    remedy = "JSON has no such number: write null instead." if "it contains" in what else None
    parts = {"got": got, "expected": expected, "remedy": remedy}
    assert vars(caught.value) == vars(InputError("a.jsonl:3", what, **parts))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text():
    with pytest.raises(ConfigError) as caught:
        parse_json(b'{"a": "\xff"}', "file")
    assert (caught.value.where, caught.value.what) == ("file", "not UTF-8 at byte 7")


@pytest.mark.parametrize(
    ("data", "what", "got", "remedy"),
    [
        (b"\xef\xbb\xbf{}", "begins with a byte order mark", None, "Save it as UTF-8 without one."),
        ("{}".encode("utf-16"), "not UTF-8 at byte 0", "UTF-16", "Save it as UTF-8."),
        (b'{"\xe9": 1}', "not UTF-8 at byte 2", None, None),
    ],
)
def test_other_encodings(data, what, got, remedy):
    with refusal(ConfigError, where="file", what=what, got=got, remedy=remedy):
        parse_json(data, "file")


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_late_key_twice_is_found_at_once(size):
    text = "{" + "".join(f'"{i}": 0, ' for i in range(size)) + f'"{size - 1}": 0}}'
    with refusal(ConfigError, what=f'not valid JSON (key "{size - 1}" occurs twice)'):
        parse_json(text, "file")


def test_objects_and_lists():
    assert parse_json("[1, 2.5]", "file") == [1, 2.5]
    assert parse_object(b' {"a": null, "b": "\xc3\xbc"}\n', "file") == {"a": None, "b": "ü"}
    with pytest.raises(ConfigError) as caught:
        parse_object("[1]", "file")
    assert (caught.value.what, caught.value.got) == ("wrong content", "a list")
    assert caught.value.expected == "a JSON object"


LOOP: list[object] = []
LOOP.append(LOOP)
BOMB: list[object] = [1]
for _ in range(60):
    BOMB = [BOMB] * 10
SHOWN = [
    ({"a": [1, "ü\n"]}, '{"a": [1, "\\u00fc\\n"]}'),
    ({1: (True, None, 1.5)}, "{1: [true, null, 1.5]}"),
    ([{}, [], ()], "[{}, [], []]"),
    ("x" * 100, '"' + "x" * 58 + "…"),
    ("\x1b[31m\ud800\u202e", '"\\u001b[31m\\ud800\\u202e"'),
    (b"\n" * 100, "b'" + r"\n" * 28 + "\\…"),
    (10**5000, "a huge int"),
    (10**100, "1" + "0" * 58 + "…"),
    ({1}, "{1}"),
    (float("nan"), "NaN"),
    (LOOP, "[" * 59 + "…"),
    (BOMB, "[" * 59 + "…"),
]


@pytest.mark.parametrize(("value", "shown"), SHOWN, ids=range(len(SHOWN)))
def test_values_are_shown_in_one_short_line(value, shown):
    assert show_value(value) == shown


def test_only_the_shown_part_of_a_huge_value_is_formatted():
    huge = "é" * 5_000_000
    tracemalloc.start()
    try:
        for value in (huge, [huge] * 1000, {huge: huge}, [0] * 1_000_000, {"a": {"b": huge}}):
            assert len(show_value(value)) == 60
        assert tracemalloc.get_traced_memory()[1] < 9_000_000  # of the list of a million itself
    finally:
        tracemalloc.stop()


def test_strict_json_and_headers_cost_no_torch():
    code = (
        "import sys; from lastword.weights import growing_header, locate, parse_json; "
        "parse_json('[]', 'x'); growing_header('a', 'F32', 3, lambda rows: {})(2); print('torch' in sys.modules); "
        "from lastword.weights import Checkpoint; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
