"""Check the arguments of `Embedder` and `Reranker` that change no result, such as max_batch_tokens; open the loop."""

from dataclasses import dataclass
from typing import SupportsIndex

from torch import Tensor

from lastword.encode_options import check_batch_tokens, check_switches
from lastword.model_info import OpenedModel
from lastword.runtime.loop import Loop
from lastword.runtime.pool import open_runner
from lastword.runtime.runner import ModelLoader, Runner


@dataclass(frozen=True, slots=True)
class Opening:
    """The arguments of `Embedder` and `Reranker` that change no result; `Embedder` describes them.

    Raises:
        ConfigError: an argument is not accepted.
    """

    max_batch_tokens: SupportsIndex | None
    cuda_graphs: bool
    show_progress_bar: bool | None
    tune_process: bool
    runner: Runner | None

    def __post_init__(self) -> None:
        check_batch_tokens(self.max_batch_tokens)
        check_switches(cuda_graphs=self.cuda_graphs, tune_process=self.tune_process)
        check_switches(show_progress_bar=self.show_progress_bar)

    def open_loop(self, info: OpenedModel, score_row: Tensor | None = None) -> Loop:
        """Load the model, unless the caller gave a runner, and return the loop that computes with the model or runner.

        Args:
            info: the model's files and settings.
            score_row: the row [C] fp32 from which a reranker computes its score; None for an embedding model.

        Raises:
            WeightsError: a tensor cannot be read.
            DeviceError: the model does not fit in a device's memory.
        """
        runner = self.runner
        if runner is None:
            how = info.checkpoint, info.config, info.dtype, info.quantize
            load = ModelLoader(*how, self.cuda_graphs, self.tune_process, score_row)
            runner = open_runner(load, info.devices, show=self.show_progress_bar)
        return Loop(info.tokenizer, runner, check_batch_tokens(self.max_batch_tokens))
