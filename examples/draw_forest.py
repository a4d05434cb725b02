"""Draw four short texts as the forest in which lastword packs them.

python examples/draw_forest.py > examples/forest.svg
"""

import sys

from lastword.batching.forest import Forest, plan_forests

PROMPT = "Given a question, find the passage that answers it:".split()
TEXTS = [
    "what is the capital of China",
    "what is gravity",
    "what is gravity",
    "why is the sky blue",
]
CELL, HEIGHT, GAP, LEFT, TOP = 58, 26, 14, 10, 34
SHARED, OWN, LAST = "#dbe7f5", "#f1f1ee", "#f6c85f"


def words_of(texts: list[str]) -> tuple[list[list[int]], list[str]]:
    """Turn each text, with the prompt and an end token, into word numbers, like a tokenizer.

    Returns:
        The numbers of each text, and the word of each number.
    """
    names: dict[str, int] = {}
    lists = [[*PROMPT, *text.split(), "<end>"] for text in texts]
    ids = [[names.setdefault(word, len(names)) for word in words] for words in lists]
    return ids, list(names)


def draw(forest: Forest, names: list[str]) -> str:
    """Draw the segments one below the other, each at the depth of its first row.

    Args:
        forest: the batch.
        names: the word of each token id.

    Returns:
        The SVG.
    """
    parts, lines = [], []
    places: dict[int, tuple[int, int]] = {}
    for line, segment in enumerate(range(len(forest.segments.start))):
        start, length = forest.segments.start[segment], forest.segments.length[segment]
        depth, parent = forest.segments.depth[segment], forest.segments.parent[segment]
        y = TOP + line * (HEIGHT + GAP)
        for offset in range(length):
            row, x = start + offset, LEFT + (depth + offset) * CELL
            color = LAST if row in forest.final_rows else SHARED if parent < 0 else OWN
            word = names[int(forest.ids[row])].replace("<", "&lt;")
            parts.append(
                f'<rect x="{x}" y="{y}" width="{CELL - 3}" height="{HEIGHT}" rx="3" fill="{color}"/>'
            )
            parts.append(f'<text x="{x + CELL / 2 - 1}" y="{y + 17}">{word}</text>')
        places[segment] = (LEFT + depth * CELL, y + HEIGHT // 2)
        if parent >= 0:
            x, middle = places[segment]
            lines.append(
                f'<path d="M{x - CELL // 2} {places[parent][1] + HEIGHT // 2} V{middle} H{x - 2}"/>'
            )
    width = LEFT + CELL * (
        1 + max(d + n for d, n in zip(forest.segments.depth, forest.segments.length, strict=True))
    )
    height = TOP + len(places) * (HEIGHT + GAP)
    asked, computed = forest.tokens_requested, forest.tokens_computed
    title = f"{len(forest.texts)} texts of {asked} tokens: {computed} rows are computed; "
    title += f"the last layer computes only {len(forest.final_rows)} of them in full"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"',
            '     font-size="11" text-anchor="middle">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="{LEFT}" y="20" font-size="13" text-anchor="start">{title}</text>',
            f'<g fill="none" stroke="#888">{"".join(lines)}</g>',
            *parts,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    ids, names = words_of(TEXTS)
    (forest,) = plan_forests(ids, 1000)
    sys.stdout.write(draw(forest, names))
