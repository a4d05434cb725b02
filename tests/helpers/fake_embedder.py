"""A model without weights, for tests of input and output: the vector of a text is a hash of it."""

import ctypes
import hashlib
import os
import time
from itertools import islice

import torch

from lastword.errors import ConfigError, InputError


class FakeTokenizer:
    """Counts one token per character; it has no template."""

    num_template_tokens = 0
    count = staticmethod(len)


class FakeInfo:
    """Imitates the `Embedder.info` of a real model."""

    def __init__(self, model):
        self.name, self.notices, self.dim = model.name, model.notices, model.dim
        self.max_length, self.prompts = model.max_length, model.prompts
        self.default_prompt_name = None
        self.resolve_prompt = model.resolve_prompt
        self.tokenizer = FakeTokenizer()

    def space_fingerprint(self, truncate_dim=None, *, normalize_embeddings=False):
        return "space0"

    def run_fingerprint(
        self,
        prompt,
        precision,
        truncate_dim=None,
        ranges=None,
        *,
        normalize_embeddings=False,
        chunking=None,
    ):
        return f"run-{precision}" + (f"-{chunking['chunk']}" if chunking else "")


class FakeEmbedder:
    dim = 8
    max_length = 100

    name = "fake"
    notices = ("fake: a notice",)

    def close(self):
        """Do nothing: there is nothing to free."""

    def __init__(self):
        self.prompts = {"query": "Q: ", "document": ""}
        self.info = FakeInfo(self)

    def resolve_prompt(self, prompt_name, prompt, kind):
        if prompt is not None:
            return prompt
        if prompt_name is not None and prompt_name not in self.prompts:
            raise ConfigError(
                "prompt", "unknown name", got=repr(prompt_name), expected="document, query"
            )
        return self.prompts.get(prompt_name or kind, "")

    def similarity(self, a, b):
        return a @ b.T

    def encode_query(self, texts, prompt_name=None, prompt=None, **options):
        text = self.resolve_prompt(prompt_name, prompt, "query")
        del text  # a query gets the vector of an equal document
        if "report" in options:
            options["report"].cut += sum(len(text) > self.max_length for text in texts)
        too_long = options.get("too_long", "cut")
        return torch.stack([self._vector(text, i, too_long) for i, text in enumerate(texts)])

    def encode_groups(
        self,
        texts,
        prompt_name=None,
        prompt=None,
        *,
        precision="float32",
        truncate_dim=None,
        ranges=None,
        too_long="cut",
        normalize_embeddings=False,
        report=None,
        show_progress_bar=None,
        on_error=None,
        on_done=None,
        on_rows=None,
    ):
        numbered = enumerate(texts)
        while group := list(islice(numbered, 3)):
            good, rows = [], []
            for i, text in group:
                try:
                    rows.append(self._vector(text, i, too_long))
                    good.append(text)
                except InputError as error:
                    if on_error is None:
                        raise
                    on_error(error)
            if on_done is not None:
                on_done(len(group))
            if report is not None:
                tokens = sum(map(len, good))
                report.texts += len(good)
                report.tokens_requested += tokens
                report.tokens_computed += tokens
                report.cut += sum(len(text) > self.max_length for text in good)
            if on_rows is not None:
                on_rows([(len(text), len(text) > self.max_length) for text in good])
            if rows:
                yield self._codes(torch.stack(rows), precision)

    def _codes(self, matrix, precision):
        if precision == "float16":
            return matrix.half()
        if precision in ("int8", "uint8"):
            return (matrix * 100).to(getattr(torch, precision))
        if precision in ("binary", "ubinary"):
            kind = torch.int8 if precision == "binary" else torch.uint8
            return (matrix[:, :1] * 100).to(kind)
        return matrix

    def _vector(self, text, index, too_long):
        if text == "NOTOKENS" or (too_long == "error" and len(text) > self.max_length):
            what = "gives no token" if text == "NOTOKENS" else "is too long"
            raise InputError(f"text {index}", what, index=index)
        if text == "CTRL-C":
            raise KeyboardInterrupt
        if text == "SLEEP":
            time.sleep(60)
        if text == "STUCK":  # lock a mutex twice in C, where no signal ends the wait
            mutex = ctypes.create_string_buffer(64)
            for _ in range(2):
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
        digest = hashlib.sha256(text.encode()).digest()[: self.dim]
        vector = torch.tensor(list(digest), dtype=torch.float32)
        return vector / vector.norm()


def run_main():
    """Run the command line with a `FakeEmbedder`; tests run this module in a separate process."""
    import sys

    from lastword.cli import main, options

    options.open_embedder = lambda args: FakeEmbedder()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main.main())


if __name__ == "__main__":
    run_main()
