"""Results as JSON lines, each written at once: what has been measured stays when a run is cut short."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def json_lines(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that appends one record to a new file; None is no file."""
    if path is None:
        yield lambda record: None  # noqa: ARG005  the signature of `write`
        return
    with path.open("w", encoding="utf-8") as file:

        def write(record: Mapping[str, Any]) -> None:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()

        yield write
