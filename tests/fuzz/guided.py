"""Coverage-guided fuzzing of the readers with atheris, which is not among the requirements.

    pip install atheris
    python tests/fuzz/guided.py TARGET CORPUS FAILURES -max_total_time=1200 -rss_limit_mb=2048 -timeout=10

TARGET is a name in `fuzz.readers.TARGETS`. CORPUS is a folder of starting inputs, to which libFuzzer adds; FAILURES
gets an input per kind of failure, with the traceback beside it. libFuzzer's own options follow. README.md tells
how the corpus of the tests was made with it.
"""

import hashlib
import sys
import tempfile
import traceback
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["lastword.weights", "lastword.cli"]):
    from fuzz import readers

from lastword.bench.checkpoint import make_checkpoint


def main() -> None:
    name, corpus, failures, *options = sys.argv[1:]
    target, kept = readers.TARGETS[name], Path(failures)
    kept.mkdir(parents=True, exist_ok=True)
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as temporary:
        folder = Path(temporary)
        readers.prepare(folder, make_checkpoint(folder / "seed", weights=False))

        def one(data: bytes) -> None:
            try:
                target(data, folder)
            except Exception as error:  # noqa: BLE001  every kind is kept
                lines = traceback.extract_tb(error.__traceback__)
                kind = repr(
                    (type(error).__name__, [(each.filename, each.lineno) for each in lines])
                )
                failure = kept / f"{name}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
                if not failure.exists():
                    failure.write_bytes(data)
                    trace = "".join(traceback.format_exception(error))
                    failure.with_suffix(".txt").write_text(trace, errors="backslashreplace")

        atheris.Setup([sys.argv[0], corpus, *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
