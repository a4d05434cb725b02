"""A model without weights, for tests of input and output: a vector is a hash of its text."""

import hashlib
import os
import time

import torch

from lastword.errors import ConfigError, InputError


class FakeEmbedder:
    dim = 8
    max_length = 100
    name = "fake"
    notices = ("fake: a notice",)
    default_prompt_name = None

    def __init__(self):
        self.prompts = {"query": "Q: ", "document": ""}

    def resolve_prompt(self, prompt_name, prompt, kind):
        if prompt is not None:
            return prompt
        if prompt_name is not None and prompt_name not in self.prompts:
            raise ConfigError(
                f"prompt_name: is unknown; got {prompt_name!r}, expected document, query"
            )
        return self.prompts.get(prompt_name or kind, "")

    def space_fingerprint(self, truncate_dim=None, *, normalize_embeddings=False):
        return "space0"

    def run_fingerprint(
        self, prompt, precision, truncate_dim=None, ranges=None, *, normalize_embeddings=False
    ):
        return f"run-{precision}"

    def similarity(self, a, b):
        return a @ b.T

    def encode_query(self, texts, prompt_name=None, prompt=None, **options):
        text = self.resolve_prompt(prompt_name, prompt, "query")
        del text  # the fake puts queries beside equal documents
        if "report" in options:
            options["report"].cut += sum(len(text) > self.max_length for text in texts)
        return torch.stack([self._vector(text, i, "cut") for i, text in enumerate(texts)])

    def encode_stream(
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
    ):
        window = []
        for index, text in enumerate(texts):
            window.append((index, text))
            if report is not None:
                report.texts += 1
                report.tokens_asked += len(text)
                report.tokens_computed += len(text)
                report.cut += len(text) > self.max_length
            if len(window) == 3:
                yield from self._vectors(window, precision, too_long)
                window = []
        yield from self._vectors(window, precision, too_long)

    def _vectors(self, window, precision, too_long):
        for index, text in window:
            vector = self._vector(text, index, too_long)
            if precision == "float16":
                vector = vector.half()
            elif precision in ("int8", "uint8"):
                vector = (vector * 100).to(getattr(torch, precision))
            elif precision in ("binary", "ubinary"):
                vector = (vector[:1] * 100).to(torch.int8 if precision == "binary" else torch.uint8)
            yield vector

    def _vector(self, text, index, too_long):
        if text == "NOTOKENS" or (too_long == "error" and len(text) > self.max_length):
            what = "gives no token" if text == "NOTOKENS" else "is too long"
            raise InputError(f"text {index}: {what}", index)
        if text == "CTRL-C":
            raise KeyboardInterrupt
        if text == "SLEEP":
            time.sleep(60)
        digest = hashlib.sha256(text.encode()).digest()[: self.dim]
        vector = torch.tensor(list(digest), dtype=torch.float32)
        return vector / vector.norm()


def run_main():
    """Run the command line on the fake, in a process of its own."""
    import sys

    from lastword.cli import main, options

    options.open_model = lambda args: FakeEmbedder()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main.main())


if __name__ == "__main__":
    run_main()
