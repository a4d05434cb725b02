"""Texts to vectors of one checkpoint: tokenizer and model, and the window loop between them.

texts ─ tokens ─► token ids ─ forest ─► Forest ─ model ─► final states ─ finish ─► vectors
Every call brings its settings along. Knows no prompts' names and no defaults: the embedder does.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from torch import Tensor

from lastword.finish import finish, quantize
from lastword.forest import Forest, plan_forests
from lastword.model import Model
from lastword.pipeline import compute_windows, count, prepare_windows
from lastword.report import Report
from lastword.settings import EncodeOptions
from lastword.states import last_token_states
from lastword.tokens import TextTokenizer, Tokens
from lastword.windows import cut_windows


class Encoder:
    """A tokenizer and the model that belongs to it, on one device."""

    def __init__(self, tokenizer: TextTokenizer, model: Model) -> None:
        self.tokenizer, self.model = tokenizer, model

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

        def compute(forest: Forest) -> Tensor:
            return finish(self.model.forward(forest), options.dim, normalize=options.normalize)

        ahead = self.model.device.type != "cpu"
        prepare = partial(self._forests, options)
        windows = prepare_windows(cut_windows(iter(texts)), prepare, ahead=ahead)
        for vectors in compute_windows(windows, compute, options.dim, report, advance):
            yield quantize(vectors, options.precision, options.ranges)

    def plan(self, texts: Iterable[str], options: EncodeOptions) -> Report:
        """Count what `windows` would compute."""
        report = Report()
        prepare = partial(self._forests, options)
        for window in prepare_windows(cut_windows(iter(texts)), prepare, ahead=False):
            for forest in window.forests:
                count(forest, window.counts)
            report.add(window.counts)
        return report

    def token_ids(self, texts: Iterable[str], options: EncodeOptions) -> list[list[int]]:
        """Give each text's token ids as they are computed."""
        ids: list[list[int]] = []
        for window in cut_windows(iter(texts)):
            ids += self._tokens(options, window, len(ids)).ids
        return ids

    def hidden_states(
        self, texts: Iterable[str], layers: Sequence[int], options: EncodeOptions
    ) -> Tensor:
        """Give the last token's state [N, len(layers), C] after each layer, see `states.last_token_states`."""
        ids = self.token_ids(texts, options)
        return last_token_states(self.model, ids, options.max_batch_tokens, layers)

    def _forests(
        self, options: EncodeOptions, window: list[str], first: int, counts: Report
    ) -> Iterator[Forest]:
        tokens = self._tokens(options, window, first)
        if options.too_long == "error":
            tokens.refuse_cut(options.max_length, first=first)
        counts.cut += sum(tokens.cut)
        yield from plan_forests(tokens.ids, options.max_batch_tokens)

    def _tokens(self, options: EncodeOptions, texts: list[str], first: int) -> Tokens:
        prefixed = [options.prefix + text for text in texts] if options.prefix else texts
        return self.tokenizer.encode(prefixed, options.max_length, first=first)
