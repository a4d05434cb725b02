"""Texts to vectors of one checkpoint: the window loop between its tokenizer and what runs its model.

texts ─ tokens ─► token ids ─ forest ─► Forest ─ model ─► final states ─ finish ─► vectors
Every call brings its settings along. Knows no prompts' names and no defaults: the embedder does.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from lastword.batching.forest import Forest, plan_forests
from lastword.errors import LastwordWarning
from lastword.model.hidden_states import last_token_states
from lastword.model.postprocess import finish, quantize
from lastword.model.qwen3 import Model
from lastword.options import EncodeOptions
from lastword.report import Report
from lastword.runtime.loop import compute_windows, count, in_memory, prepare_windows, read_ahead
from lastword.runtime.runner import Runner
from lastword.text.groups import cut_windows
from lastword.text.tokenizer import TextTokenizer, Tokens


class Encoder:
    """A tokenizer and what runs the model that belongs to it; C is the model's `hidden_size`.

    `max_batch_tokens` None stands for what suits the runner's devices; it shrinks where memory runs out.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        runner: Runner,
        hidden_size: int,
        max_batch_tokens: int | None,
    ) -> None:
        self.tokenizer, self.runner, self.hidden_size = tokenizer, runner, hidden_size
        self.max_batch_tokens = max_batch_tokens or runner.batch_tokens
        self._out_of_memory = False

    def windows(
        self,
        texts: Iterable[str],
        options: EncodeOptions,
        report: Report,
        advance: Callable[[int], None],
    ) -> Iterator[Tensor]:
        """Yield the vectors [n, dim] of one window of texts after another, in the caller's order.

        Args:     report: counts are added to it as the work goes on; advance: told of texts done.
        Raises:   InputError naming a text by its index, after the vectors of all windows before its own.
        """
        start = partial(self.runner.start, partial(_vectors, options.dim, options.normalize))
        prepare = partial(self._forests, options)
        windows = prepare_windows(self.cut(texts), prepare, ahead=self.runner.ahead)
        for vectors in compute_windows(
            windows,
            start,
            options.dim,
            report,
            advance,
            too_large=self._take_smaller_batches,
            depth=self.runner.depth,
        ):
            yield quantize(vectors, options.precision, options.ranges)

    def cut(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """Cut texts into the windows that are tokenised and packed together."""
        return cut_windows(iter(texts), small_first=self.runner.ahead)

    def plan(self, texts: Iterable[str], options: EncodeOptions) -> Report:
        """Count what `windows` would compute."""
        report = Report()
        prepare = partial(self._forests, options)
        for window in prepare_windows(self.cut(texts), prepare, ahead=False):
            for forest in window.forests:
                count(forest, window.counts)
            report.add(window.counts)
        return report

    def token_ids(self, texts: Iterable[str], options: EncodeOptions) -> list[list[int]]:
        """Give each text's token ids as they are computed."""
        ids: list[list[int]] = []
        for window in self.cut(texts):
            ids += self._tokens(options, window, len(ids)).ids
        return ids

    def hidden_states(
        self, texts: Iterable[str], layers: Sequence[int], options: EncodeOptions
    ) -> Tensor:
        """Give the last token's state [N, len(layers), C] after each layer, see `states.last_token_states`."""
        ids = self.token_ids(texts, options)
        states = torch.empty(len(ids), len(layers), self.hidden_size)
        start = partial(self.runner.start, partial(last_token_states, tuple(layers)))
        forests = plan_forests(ids, self.max_batch_tokens)
        started = ((forest, start(forest)) for forest in forests)
        for forest, wait in read_ahead(started, self.runner.depth):
            for part, found in in_memory(forest, wait, start, 0, self._take_smaller_batches):
                states[part.texts] = found[part.distinct]
        return states

    def _take_smaller_batches(self, tokens: int) -> None:
        """Halve the batches to come where one of so many tokens ran out of memory, and say so once."""
        if not self._out_of_memory:
            self._out_of_memory = True
            warnings.warn(
                f"max_batch_tokens: {self.runner.name} is out of memory at {tokens} tokens a batch; it is split, and "
                "batches are smaller from now on. Set it lower to spare the attempts.",
                LastwordWarning,
                stacklevel=2,
            )
        self.max_batch_tokens = min(self.max_batch_tokens, max(1, tokens // 2))

    def _forests(
        self, options: EncodeOptions, window: list[str], first: int, counts: Report
    ) -> Iterator[Forest]:
        tokens = self._tokens(options, window, first)
        if options.too_long == "error":
            tokens.refuse_cut(options.max_length, first=first)
        counts.cut += sum(tokens.cut)
        yield from plan_forests(tokens.ids, self.max_batch_tokens)

    def _tokens(self, options: EncodeOptions, texts: list[str], first: int) -> Tokens:
        return self.tokenizer.encode(texts, options.max_length, prompt=options.prefix, first=first)


def _vectors(dim: int, normalize: bool, model: Model, forest: Forest) -> Tensor:  # noqa: FBT001  a task
    """Compute the vectors [N', dim] of a forest's distinct texts."""
    return finish(model.forward(forest), dim, normalize=normalize)
