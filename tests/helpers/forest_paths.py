"""The rows that a packed row attends to, read off a forest the slow way: what builders and kernels are held to."""

from lastword.batching.forest import Forest


def path_rows(forest: Forest, row: int) -> list[int]:
    """Rows that `row` attends to, itself last, found by walking up from it by the definition of a segment."""
    segments = forest.segments
    (owner,) = [
        s
        for s, (start, length) in enumerate(zip(segments.start, segments.length, strict=True))
        if start <= row < start + length
    ]
    rows = list(range(segments.start[owner], row + 1))
    while segments.parent[owner] >= 0:
        start, fork = segments.start[segments.parent[owner]], segments.fork[owner]
        rows = list(range(start, start + fork)) + rows
        owner = segments.parent[owner]
    return rows
