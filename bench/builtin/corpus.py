"""Build the training texts and the held-out texts from the unpacked packages.

`train.jsonl` has one object {"text"} or {"text", "query"} per line, shuffled; the composed texts come last.
`heldout.json` has functions and sentences. All text about one function, command or meaning goes into only one of the
two files. In addition, training texts that contain a held-out text are dropped.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lastword.bench.builtin.composed_texts import compose_texts
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

T = TypeVar("T")

HELD_FUNCTIONS = 36  # percent of functions and commands, which gives more than 2,000 passages
HELD_SENSES = 3  # percent of WordNet's meanings
HELD_SENTENCES = 2000
PASSAGE_CHARS = 1000  # about 256 word pieces, which is the teacher's limit
COMPOSED = 150_000  # number of texts composed from words and sentences
RARE_SENSES = 1.0  # share of the rare words' meanings that is trained on
SEED = 4


@dataclass(frozen=True)
class TrainingText:
    """One training text, and a query that it answers, if there is one."""

    text: str
    query: str | None = None


def build(root: Path, vocabulary: set[str], out: Path) -> None:
    """Write train.jsonl and heldout.json under `out`.

    Args:
        root: the folder of the unpacked packages.
        vocabulary: the words that count as common, which are the teacher's whole words.
        out: the folder to write to; created if missing.
    """
    share = root / "usr" / "share"
    rng = random.Random(SEED)
    entries, prose = _documentation(share)
    entries = list({_key(e.summary): e for e in entries if _key(e.summary)}.values())
    kept, held = _split(entries, lambda e: _function_name(e.name), HELD_FUNCTIONS)
    functions = [e for e in held if len(e.body) >= 60 and 20 <= len(e.summary) <= 300]
    senses, whole = _wordnet(share / "dictd" / "wn.dict.dz")
    known, hidden = _split(senses, lambda s: s.words[0].lower(), HELD_SENSES)
    judged = [*(_gloss(s) for s in hidden), *(x for s in hidden for x in s.examples)]
    judged = sorted({text for text in judged if 15 <= len(text) <= 300})
    rng.shuffle(judged)
    judged = judged[:HELD_SENTENCES]

    items = [
        *_from_functions(kept),
        *_from_prose(prose, rng),
        *_from_senses(known, vocabulary, rng),
        *_from_entries(whole, {s.words for s in hidden}, vocabulary),
    ]
    forbidden = {_key(part) for e in held for part in (e.summary, *sentences(e.body))}
    forbidden |= {_key(text) for s in hidden for text in (s.gloss, *s.examples)}
    items = list(_drop_forbidden(items, {key for key in forbidden if len(key) >= 25}))
    rng.shuffle(items)
    made = (TrainingText(text) for text in compose_texts(known, vocabulary, COMPOSED, SEED))
    items += _drop_forbidden(made, {key for key in forbidden if len(key) >= 25})

    out.mkdir(parents=True, exist_ok=True)
    with (out / "train.jsonl").open("w", encoding="utf-8") as file:
        for item in items:
            value = {"text": item.text} | ({"query": item.query} if item.query else {})
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
    heldout = {
        "functions": [{"query": e.summary, "text": _passage(e)} for e in functions],
        "sentences": judged,
    }
    (out / "heldout.json").write_text(json.dumps(heldout, ensure_ascii=False), encoding="utf-8")


def _documentation(share: Path) -> tuple[list[Entry], list[str]]:
    entries, prose = list[Entry](), list[str]()
    for path in sorted((share / "doc").glob("python3*/html/_sources/**/*.rst.txt")):
        page = path.read_text(encoding="utf-8")
        entries += rst_entries(page)
        prose += rst_paragraphs(page)
    for path in sorted((share / "man").rglob("*.gz")):
        sections = man_sections(path)
        entry = man_entry(sections)
        if entry is None:
            continue
        entries.append(entry)
        # The rest of a held-out command's page is not used, because it would reveal the command.
        if not _is_held_out(_function_name(entry.name), HELD_FUNCTIONS):
            rest = (parts for title, parts in sections.items() if title not in _MAN_SKIP)
            prose += [paragraph for parts in rest for paragraph in parts]
    for path in sorted((share / "doc/debian-handbook/html/en-US").glob("*.html")):
        prose += html_paragraphs(path.read_text(encoding="utf-8"))
    return entries, prose


_MAN_SKIP = {"NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO", "COLOPHON", "AUTHOR", "ATTRIBUTES"}


def _wordnet(path: Path) -> tuple[list[Sense], list[tuple[str, list[Sense]]]]:
    entries = list(wordnet_entries(path))
    senses = {(s.words, s.gloss): s for _, found in entries for s in found}
    return list(senses.values()), entries


def _function_name(name: str) -> str:
    """Reduce a signature or a list of commands to one name, such as copyfile or git-add, for `_is_held_out`."""
    bare = re.split(r"[(\[,\s]", re.sub(r"^.*?(\S+\()", r"\1", name), maxsplit=1)[0]
    return bare.rpartition(".")[2].strip("*").lower() or name


def _is_held_out(name: str, percent: int) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % 100 < percent


def _split(items: Iterable[T], name: Callable[[T], str], percent: int) -> tuple[list[T], list[T]]:
    kept, held = list[T](), list[T]()
    for item in items:
        (held if _is_held_out(name(item), percent) else kept).append(item)
    return kept, held


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def _passage(entry: Entry) -> str:
    return _cut(f"{entry.name}: {entry.body}")


def _cut(text: str) -> str:
    return text if len(text) <= PASSAGE_CHARS else text[:PASSAGE_CHARS].rsplit(" ", 1)[0]


def _from_functions(entries: list[Entry]) -> Iterator[TrainingText]:
    for entry in entries:
        if len(entry.body) >= 40:
            yield TrainingText(_passage(entry), entry.summary)
            if question := _how_do_i(entry.summary):
                yield TrainingText(_cut(f"{entry.name}: {entry.summary} {entry.body}"), question)
        else:
            yield TrainingText(f"{entry.name}: {entry.summary}", _how_do_i(entry.summary))


_VERBS = """add allow append apply arrange ask assign attach begin build call cancel change check choose clear close
compare compile compute convert copy create decode delete describe determine display divide download draw encode
execute extract fetch fill find flush force format generate handle insert install join kill launch list load lock
log make manage map mark match measure merge modify move open parse perform pop prepare print provide put query
raise read receive record register release remove rename render replace report request reset restore resume
retrieve reverse run save scan schedule search select send set show shift skip sort split start stop store
suspend swap switch synchronize terminate test track transform translate undo unlock update upload validate verify
wait write""".split()


def _how_do_i(summary: str) -> str | None:
    """Turn an imperative summary into a question: "Copy the file." becomes "how do I copy the file?"."""
    first, _, rest = summary.rstrip(".").partition(" ")
    verb = {"return": "get", "returns": "get"}.get(first.lower(), first.lower())
    verb = verb[:-1] if verb.endswith("s") and verb[:-1] in _VERBS else verb
    if not rest or len(summary) > 160 or (verb not in _VERBS and verb != "get"):
        return None
    return f"how do I {verb} {rest}?"


def _from_prose(paragraphs: list[str], rng: random.Random) -> Iterator[TrainingText]:
    for paragraph in paragraphs:
        if len(paragraph) >= 200:
            yield TrainingText(_cut(paragraph))
        for sentence in sentences(paragraph):
            if 25 <= len(sentence) <= 300 and rng.random() < 0.3:
                yield TrainingText(sentence)


def _gloss(sense: Sense) -> str:
    return f"{', '.join(sense.words[:4])}: {sense.gloss}"


_ASKED = {
    "n": ("what is {w}?", "what is a {w}?", "{w}", "what does {w} mean?", "tell me about {w}"),
    "v": ("how do I {w}?", "how to {w}", "what does it mean to {w}?", "should I {w}?", "{w}"),
    "adj": ("what does {w} mean?", "when is something {w}?", "{w}"),
    "adv": ("what does {w} mean?", "{w}"),
}


def _from_senses(
    senses: list[Sense], common: set[str], rng: random.Random
) -> Iterator[TrainingText]:
    for sense in senses:
        frequent = _common(sense.words, common)
        if not frequent and rng.random() > RARE_SENSES:
            continue
        query = None
        if frequent and rng.random() < 0.5:
            if sense.part == "v" and rng.random() < 0.5:
                query = f"how do I {re.split(r'[;(]', sense.gloss)[0].strip()}?"
            else:
                query = rng.choice(_ASKED[sense.part]).format(w=rng.choice(sense.words))
        yield TrainingText(_gloss(sense), query)
        if len(sense.examples) > 1 and rng.random() < 0.5:
            yield TrainingText(f"{sense.gloss}. " + " ".join(sense.examples))
        for example in sense.examples:
            if len(example) >= 15:
                yield TrainingText(example)


def _from_entries(
    entries: list[tuple[str, list[Sense]]], hidden: set[tuple[str, ...]], common: set[str]
) -> Iterator[TrainingText]:
    """Compose a passage like a dictionary entry for each common word with several meanings that are not `hidden`."""
    for head, senses in entries:
        shown = [sense for sense in senses if sense.words not in hidden]
        if len(shown) > 1 and _common((head,), common):
            parts = [" ".join([f"{s.gloss}.", *s.examples[:2]]) for s in shown]
            yield TrainingText(_cut(f"{head}: " + " ".join(parts)), f"what does {head} mean?")


def _common(words: Iterable[str], common: set[str]) -> bool:
    return any(all(part in common for part in re.split(r"[ -]", word.lower())) for word in words)


def _drop_forbidden(items: Iterable[TrainingText], forbidden: set[str]) -> Iterator[TrainingText]:
    """Yield the items, except repeated ones and those that contain a held-out text or sentence."""
    seen = set[str]()
    for item in items:
        keys = {_key(item.text), *map(_key, sentences(item.text))}
        gloss = _key(item.text.partition(": ")[2])
        query = _key((item.query or "").removeprefix("how do I "))
        if _key(item.text) in seen or (keys | {gloss, query}) & forbidden:
            continue
        seen.add(_key(item.text))
        yield item
