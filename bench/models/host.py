"""Time the host's work before a batch's forward: tokenising, building forests, and packing for the kernels.

    python -m lastword.bench.models.host --length 32

Each step is timed alone, on one core; the figures are medians, in tokens per second of processor time. `--tokenizer
FOLDER` sets the tokenizer. By default it is Qwen's if LASTWORD_TEST_DATA is set, otherwise a synthetic one, which is
faster. In `encode`, the tokenizer runs without Python's interpreter lock, on all cores that the process may use. The
other two steps hold that lock, and run while a GPU computes the previous batch.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

import torch

from lastword.batching.forest import Forest, plan_forests
from lastword.batching.packing import Packer
from lastword.bench.checkpoint import word_tokenizer
from lastword.bench.machine import busy_notice, describe_run
from lastword.bench.measure import median_seconds
from lastword.bench.models.workloads import real_tokenizer, texts_of
from lastword.errors import LastwordError
from lastword.text.tokenizer import TextTokenizer

CPU = torch.device("cpu")
_VOCABULARY = 1 << 20  # more token ids than any tokenizer has


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the three steps (tokenise, build forests, pack) and print their rates."""
    parser = argparse.ArgumentParser(
        prog="python -m lastword.bench.models.host", description=__doc__
    )
    parser.add_argument(
        "--length", type=int, default=32, help="approximate tokens per text; default 32"
    )
    parser.add_argument(
        "--texts",
        type=int,
        default=4096,
        help="number of texts; the default is a full group (4096)",
    )
    parser.add_argument("--batch", type=int, default=16_384, help="tokens per batch; default 16384")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer.json")
    options = parser.parse_args(arguments)
    os.environ["RAYON_NUM_THREADS"] = "1"  # threads of the tokenizer
    torch.set_num_threads(1)
    about = describe_run(CPU, torch.float32)
    print(json.dumps({"run": about}))
    print(busy_notice(about) or f"{about['device']}, one core, torch {about['torch']}")
    texts = texts_of(options.texts, options.length - 1)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            tokenizer = _tokenizer(options.tokenizer, Path(scratch))
        except LastwordError as error:
            parser.error(str(error))
        ids = tokenizer.encode(texts, 32_768).ids
        tokens = sum(map(len, ids))
        print(f"{len(texts)} texts of {tokens / len(texts):.1f} tokens on average")

        def report(what: str, call: Callable[[], object]) -> None:
            seconds = median_seconds(call, options.rounds, CPU, process_time)
            print(f"{what:<16}{tokens / seconds / 1e6:8.2f} M tokens/s")

        report("tokenise", lambda: tokenizer.encode(texts, 32_768))
        report("build forests", lambda: _forests(ids, options.batch))
        forests, packer = _forests(ids, options.batch), Packer(CPU, torch.float32, 4, 1)
        if sum(len(forest.texts) for forest in forests) != len(texts):
            raise RuntimeError("the forests do not contain every text")
        report("pack", lambda: [packer.pack(forest) for forest in forests])


def _forests(ids: list[list[int]], batch: int) -> list[Forest]:
    return list(plan_forests(ids, batch))


def _tokenizer(folder: Path | None, scratch: Path) -> TextTokenizer:
    folder = folder or real_tokenizer()
    if folder is None:
        folder = scratch
        word_tokenizer().save(str(scratch / "tokenizer.json"))
    return TextTokenizer(folder, _VOCABULARY)


if __name__ == "__main__":
    main()
