"""Compose everyday questions and passages from WordNet's words and sentences.

The teacher has a vector for any string, so the student can learn common words in combinations that no dictionary has.
The grammar is rough, because only the combinations of words matter.
"""

import random
from collections.abc import Iterable, Iterator, Sequence

from lastword.bench.builtin.documents import Sense

# {n}, {v} and {a}: a common noun, verb and adjective; each occurrence is drawn separately.
QUESTIONS = (
    "how do I {v} a {n}?",
    "how do I {v} a {n} without a {n}?",
    "how can I {v} my {n} at home?",
    "how can I tell that a {n} is {a}?",
    "how long does it take to {v} a {n}?",
    "how much {n} does a {n} need?",
    "how many {n} are in a {n}?",
    "how often should I {v} the {n}?",
    "how does a {n} {v}?",
    "how {a} should a {n} be?",
    "why does my {n} {v}?",
    "why is the {n} {a}?",
    "why did my {n} not {v}?",
    "what is a {a} {n}?",
    "what causes {n}?",
    "what helps against {n} and {n}?",
    "what can I use instead of {n} for a {n}?",
    "what is the difference between a {n} and a {n}?",
    "what should I do if my {n} is {a}?",
    "what is the best {n} for a {a} {n}?",
    "what belongs in a {n}?",
    "when should I {v} the {n}?",
    "when does a {n} {v}?",
    "where can I {v} a {n}?",
    "where does {n} come from?",
    "who can {v} a {n}?",
    "which {n} is good for {n}?",
    "is it safe to {v} {a} {n}?",
    "can I {v} {n} with {n}?",
    "do I need a {n} to {v} a {n}?",
    "should I {v} the {n} before I {v} it?",
    "{v} a {a} {n}",
    "{n} and {n}",
    "{a} {n} with {n}",
)


def compose_texts(
    senses: Sequence[Sense], common: set[str], count: int, seed: int
) -> Iterator[str]:
    """Yield `count` texts: two questions, then a passage of two or three unrelated sentences, and so on.

    Args:
        senses: the meanings that are not held out, to take words and sentences from.
        common: the only words that questions may use.
        count: number of texts.
        seed: seed of the draws.
    """
    rng = random.Random(seed)
    words = {part: _words(senses, part, common) for part in ("n", "v", "adj")}
    spoken = [text for s in senses for text in (*s.examples, s.gloss) if 20 <= len(text) <= 200]
    for i in range(count):
        if i % 3 < 2:
            yield _fill(rng.choice(QUESTIONS), words, rng)
        else:
            yield " ".join(_sentence(text) for text in rng.sample(spoken, rng.choice((2, 2, 3))))


def _words(senses: Iterable[Sense], part: str, common: set[str]) -> list[str]:
    """List the common single words of a part of speech; a word with several meanings is listed once per meaning."""
    return [w for s in senses if s.part == part for w in s.words if w in common and len(w) > 2]


def _fill(question: str, words: dict[str, list[str]], rng: random.Random) -> str:
    for slot, part in (("{n}", "n"), ("{v}", "v"), ("{a}", "adj")):
        while slot in question:
            question = question.replace(slot, rng.choice(words[part]), 1)
    return question


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".;") + "."
