"""The built-in texts of every verification.

They cover short and long texts, scripts, special characters, prompts, equal texts and shared beginnings: cases in
which engines have made mistakes. In total they have 2,181 tokens with Qwen3-Embedding's tokenizer, few enough to verify
a large model on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

_STORY = (
    "The lighthouse keeper wrote down the weather every morning: wind from the west, a falling glass, "
    "two ships far out. In the evening she read what she had written and changed nothing. "
)
_LENGTHS = ("a", "Yes.", "tide", "one two three", _STORY[:60], _STORY, _STORY * 2, _STORY * 4)
_SCRIPTS = (
    "今天的天气怎么样？我们去海边走走吧。",
    "明日は雨が降るので、傘を持って行ってください。",
    "내일 아침 일곱 시에 기차가 출발합니다.",
    "Сегодня хорошая погода, и поезд идёт по расписанию.",
    "القطار يغادر غدًا في الساعة السابعة صباحًا.",
    "आज मौसम बहुत अच्छा है।",
    "พรุ่งนี้เช้ารถไฟออกเจ็ดโมง",
    "Wo ist der nächste Bahnhof? Où est la gare ? ¿Dónde está la estación?",
    "Cafe\u0301 and caf\u00e9 are one word to a normaliser, two to a naive one.",
    "👩‍🚀🚀 emoji with joiners, 𝒻𝒶𝓃𝒸𝓎 letters, ﬁ ligature",
)
_SPECIALS = (
    "",
    " ",
    "\n\n\t \r\n",
    "  spaces  before, between and after  ",
    "<|endoftext|>",
    "a marker <|im_end|> inside the text",
    "importance",
    "import numpy as np\n\nfor i in range(10):\n\tprint(i ** 2)  # squares\n",
    '{"id": 17, "price": 1234.50, "tags": ["new", "blue"]}',
    "3.14159 26535 89793 23846 26433 83279",
    "https://example.org/path?query=a%20b&page=2#top",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "null\u0000byte and zero\u200bwidth and \ufeffmark",
)
_EQUAL = ("The ferry leaves at noon.",) * 3
_BEGINNING = (
    "The report has three parts. The first describes the harbour and the second the railway. "
)
_SHARED = (
    _BEGINNING,
    _BEGINNING + "The third is about the market.",
    _BEGINNING + "The third is about the mountain road.",
    _BEGINNING + "The third is about the mountain road and who repairs it after the winter.",
    _BEGINNING + "There is no third.",
)
_QUERIES = (
    "What is the capital of China?",
    "Explain gravity",
    "when does the ferry leave",
    "how do I reset the alarm?",
    "天气怎么样",
    "",
    "lighthouse keeper weather log",
    "lighthouse keeper weather",
    "What is the capital of China?",
)
_ANSWERS = (
    "The capital of China is Beijing.",
    "Gravity pulls two masses together and keeps the planets on their paths around the sun.",
    "Hold both buttons for five seconds until the light goes out; the alarm is then reset.",
    "Bread needs flour, water, salt, yeast and time.",
    "The museum is closed on Mondays and on the first day of the year.",
)

_LONG = "".join(f"Entry {day}: wind {day * 7 % 12}, {_STORY[45:98]} " for day in range(50))


@dataclass(frozen=True, slots=True)
class Probe:
    """A text (or a pair, for a reranker), and how to embed or score it.

    Args:
        text: the text; the document of a pair.
        kind: "query" or "document" selects the prompt before the text; "pair" says that `query` and `text` are a pair.
        alone: also embed or score it in a call of its own, to check that other texts in a batch do not change the
            result.
        query: the query of a pair.
    """

    text: str
    kind: Literal["query", "document", "pair"] = "document"
    alone: bool = False
    query: str = ""


def probes(texts: Sequence[str] = ()) -> list[Probe]:
    """Return the built-in probes, followed by the caller's texts as documents."""
    plain = (*_LENGTHS, *_SCRIPTS, *_SPECIALS, *_ANSWERS, _LONG, *texts)
    return [
        *(Probe(text, "query", alone=True) for text in _QUERIES),
        *(Probe(text, alone=True) for text in (*_EQUAL, *_SHARED)),
        *(Probe(text) for text in plain),
    ]


def pair_probes(texts: Sequence[str] = ()) -> list[Probe]:
    """Return the built-in pairs, followed by the caller's texts, each as a document of the same built-in query."""
    query, *others = _QUERIES
    documents = (*_ANSWERS, *_EQUAL, *_SHARED)
    plain = (*_LENGTHS, *_SCRIPTS, *_SPECIALS, _LONG)
    return [
        *(Probe(text, "pair", alone=True, query=query) for text in documents),
        *(Probe(_ANSWERS[0], "pair", query=each) for each in others),
        *(
            Probe(text, "pair", query=each)
            for text, each in zip(plain, cycle(others), strict=False)
        ),
        *(Probe(text, "pair", query=query) for text in texts),
    ]
