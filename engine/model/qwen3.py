"""The Qwen3 forward over a forest: from token rows to the hidden state of each distinct text's last token.

The layers are in `layer.py`. On a GPU nothing here waits for the device. This module knows weights and kernels,
but no texts or tokenizers.

Last-token pooling is built in: the last layer computes only last-token rows. Another pooling, such as the mean, would
need these changes:

* `weights/module_list.py`: `_read_pooling` accepts the new mode and obeys `include_prompt`, and `read_modules`
  returns the model's mode;
* `weights/embedding_spec.py`: `EmbeddingSpec` gets a field for the mode, which `read_embedding_spec` fills, with
  "lasttoken" where there is no modules.json;
* `base/opening.py`: `Opening.open_loop` passes that field of `info.spec` to `ModelLoader`;
* `runtime/runner.py`: `ModelLoader` gets the field too and passes it to `Model`;
* `layer.py`: the last layer is built and run like the others (`forward`, not `forward_last`);
* here: the rows of each text's path of segments (`batching/forest.py`) are summed; so the prompt cache must keep the
  final states of a prompt's rows, not only their keys and values;
* `hidden_states.py`: layer -1 remains the last token's state, not the pooled state;
* `model_info.py`: `space_fingerprint` includes the mode unless it is "lasttoken";
* `verify/transformers_reference.py`: the reference computes it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lastword import kernels
from lastword.batching.forest import Forest, plan_forests
from lastword.batching.packing import MAX_BUCKET_ROWS, ModelInputs, Packer, all_buckets, check_ids
from lastword.kernels.caller_settings import default_settings
from lastword.model.layer import Batch, Layer
from lastword.model.prompt_cache import MAX_PROMPT_BYTES, KeysValues, PromptCache
from lastword.model.rope import inverse_frequencies
from lastword.model.smoothing import Smoothing
from lastword.runtime.cuda_graphs import CudaRecorder, Graphs, Recorder
from lastword.weights import LayerWeights, ModelConfig, WeightsSource

Observer = Callable[[int, Tensor], None]


class Model:
    """A loaded Qwen3 model, for embedding or reranking, on one device.

    `forward` maps a Forest to the final states [N', C]: the hidden state after the final norm at each distinct text's
    last token, in the compute dtype.

    Args:
        checkpoint: source of the weights.
        config: the model's config.
        device: the device to compute on.
        dtype: the compute dtype.
        quantize: "int8" quantises the matmuls of all layers (CPU, fp32); "fp8" those of all layers but the first and
            the last (GPU, bf16). Norms and attention stay in the compute dtype.
        cuda_graphs: once `warm_up` has recorded them, replay small batches on a GPU as CUDA graphs; results have the
            same bits with and without.
        score_row: [C], fp32, the row whose dot product with a final state is a reranker's score; None for an embedding
            model.
        loaded: called with 1 after each layer is loaded.
    """

    def __init__(
        self,
        checkpoint: WeightsSource,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        quantize: str | None = None,
        *,
        cuda_graphs: bool = True,
        score_row: Tensor | None = None,
        loaded: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        # On a CPU the table stays in the memory-mapped file; only the rows of a batch are read and converted.
        table = checkpoint.embedding()
        self.embedding = table if device.type == "cpu" else table.to(device, dtype)
        self.inv_freq = inverse_frequencies(config.rope, config.head_dim).to(device)
        smoothing = Smoothing(config, self.embedding, self.inv_freq) if quantize == "int8" else None
        self.layers = []
        for i in range(config.num_hidden_layers):
            self.layers.append(self._load_layer(checkpoint, i, quantize, smoothing))
            loaded(1)
        self.norm = checkpoint.norm().to(device, dtype)
        self.score_row = None if score_row is None else score_row.to(device)
        self.prompts = PromptCache()
        self._packer: Packer | None = None  # the CPU implementation needs no packing
        self._graphs: Graphs | None = None
        if kernels.launches_triton(device):
            with default_settings(device):
                records = cuda_graphs and device.type == "cuda"
                self.use_packing(CudaRecorder() if records else None)

    def _load_layer(
        self, checkpoint: WeightsSource, i: int, quantize: str | None, smoothing: Smoothing | None
    ) -> Layer:
        """Load layer i. Memory that is needed only for loading is freed before the next layer is read."""
        last = self.config.num_hidden_layers - 1
        weights = _place(checkpoint.layer(i, self.dtype), self.device, self.dtype)
        if smoothing is not None:
            weights = smoothing.smooth(weights)
        mode = None if quantize == "fp8" and i in (0, last) else quantize
        return Layer(weights, self.config, i, quantize=mode)

    def use_packing(self, recorder: Recorder | None) -> None:
        """From now on, pack batches for the Triton kernels; with `recorder`, `warm_up` records graphs of small ones."""
        c = self.config
        group = c.num_attention_heads // c.num_key_value_heads
        heads = 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
        layer_weights = c.hidden_size * (heads + 3 * c.intermediate_size)
        self._packer = Packer(self.device, self.dtype, group, layer_weights)
        self._graphs = None
        if recorder is not None:
            self._graphs = Graphs(
                width=c.hidden_size, dtype=self.dtype, device=self.device, recorder=recorder
            )

    @torch.inference_mode()
    def warm_up(self, most_rows: int) -> None:
        """Compile the kernels for small batches and record their graphs, largest first; without packing, do nothing.

        Args:
            most_rows: maximum rows of a batch.

        Raises:
            Exception: what the kernels themselves raise.
        """
        if self._packer is None:
            return
        (forest,) = plan_forests([[0]], 1)
        layouts = [self._packer.bucket_layout(each) for each in all_buckets(most_rows)]
        with default_settings(self.device):
            batches = [(layout, self._packer.fill(layout, forest)) for layout in layouts]
            if self._graphs is not None:
                self._graphs.record(self._forward, batches)
                return
            for layout, buffer in batches:
                with suppress(torch.OutOfMemoryError):  # such a batch will be divided
                    self._forward(layout.read(buffer.to(self.device)))

    @property
    def graph_bytes(self) -> int:
        """Estimated bytes of activations of the graphs that `warm_up` records; 0 without graphs.

        The graphs share the activations of the largest. Buffers, libraries' workspaces and CUDA's own description of
        the graphs are not counted.
        """
        return 0 if self._graphs is None else self.token_bytes * MAX_BUCKET_ROWS

    @property
    def token_bytes(self) -> int:
        """Peak bytes of activations per token of a batch; the peak is in SwiGLU."""
        c = self.config
        heads = 2 * c.num_attention_heads + 2 * c.num_key_value_heads  # q, k, v, attention output
        row = 3 * c.hidden_size + heads * c.head_dim + 3 * c.intermediate_size
        return row * self.dtype.itemsize + c.head_dim * 4  # plus cos and sin in fp32

    @torch.inference_mode()
    def forward(self, forest: Forest, observe: Observer | None = None) -> Tensor:
        """Compute the final states [N', C].

        Args:
            forest: the batch.
            observe: called as `observe(i, residual)` after layer i, counted from 0; after the last layer, `residual`
                has only the last-token rows.

        Raises:
            InputError: a token id has no row in the embedding table.
        """
        check_ids(forest, self.config.vocab_size)
        with default_settings(self.device):
            if self._packer is None:
                prompts = [self.prompts.get(ids, self._compute_prompt) for ids in forest.prompts]
                inputs = ModelInputs.of(forest, self.device, pad=observe is None)
                return self._forward(inputs, observe, prompts)[: len(forest.final_rows)]
            finals = len(forest.final_rows)
            layout, buffer = self._packer.pack(forest, pad=observe is None)
            if self._graphs is not None and layout in self._graphs:
                return self._graphs.run(layout, buffer, finals)
            inputs = layout.read(buffer.to(self.device, non_blocking=True))
            return self._forward(inputs, observe)[:finals]

    @property
    def max_prompt_tokens(self) -> int:
        """Maximum tokens of a prompt whose keys and values are kept; 0 if none are kept, as on a GPU."""
        row = self.config.keys_values_bytes(self.dtype.itemsize)
        return MAX_PROMPT_BYTES // row if self._packer is None else 0

    def _compute_prompt(self, prompt: Sequence[int]) -> KeysValues:
        """Run the forward on a prompt alone, and return the keys and values of every layer."""
        (forest,) = plan_forests([prompt], len(prompt))
        check_ids(forest, self.config.vocab_size)
        recorded = KeysValues([])
        self._forward(ModelInputs.of(forest, self.device), recorded=recorded)
        return recorded

    def _forward(
        self,
        inputs: ModelInputs,
        observe: Observer | None = None,
        prompts: Sequence[KeysValues] = (),
        recorded: KeysValues | None = None,
    ) -> Tensor:
        """Compute the last-token rows' final states. The host reads no tensor, so a CUDA graph can record all of it."""
        attention_factor = self.config.rope.attention_factor
        cos, sin = kernels.rope_tables(inputs.positions, self.inv_freq, attention_factor)
        batch = Batch(inputs.plan, cos, sin, inputs.final_rows, prompts, recorded)
        eps = self.config.rms_norm_eps
        first = self.layers[0].input_norm
        residual, x = kernels.embed_rms_norm(inputs.ids, self.embedding, first, eps)
        for i, layer in enumerate(self.layers[:-1]):
            x = layer.forward(x, batch, residual)
            after = self.layers[i + 1]
            x = after.add_norm(x, residual, after.input_norm, eps)
            if observe:
                observe(i, residual)
        final_residual = residual[batch.final_rows]
        x = self.layers[-1].forward_last(x, batch, final_residual)
        states = kernels.add_rms_norm(x, final_residual, self.norm, eps)
        if observe:
            observe(len(self.layers) - 1, final_residual)
        return states


def _place(weights: LayerWeights, device: torch.device, dtype: torch.dtype) -> LayerWeights:
    """Move one layer's tensors to the device in the compute dtype."""
    tensors = {name: getattr(weights, name) for name in weights.__slots__}
    moved: dict[str, Any] = {
        name: t if t is None else t.to(device, dtype) for name, t in tensors.items()
    }
    return replace(weights, **moved)
