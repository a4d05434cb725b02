"""The Qwen3 forward over a forest: from token rows to the hidden state of each distinct text's last token.

Each layer maps (x, residual) to (x, residual). The last layer computes keys and values for all rows and everything
else for the last-token rows only. On a GPU nothing here waits for the device. This module knows weights and kernels,
but no texts or tokenizers.

Pooling is this structure. Another pooling, such as the mean, would need every row of the last layer (`forward` instead
of `forward_last`), a sum over each text's path of segments (`batching/forest.py`), and a setting that
`weights/embedding_spec.py` reads instead of refusing it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lastword import kernels
from lastword.batching.forest import Forest
from lastword.batching.packing import ModelInputs, Packer, check_ids
from lastword.kernels import AttentionPlan, MatmulInput
from lastword.kernels.caller_settings import isolated
from lastword.model.rope import inverse_frequencies
from lastword.runtime.cuda_graphs import Capture, CudaCapture, Graphs
from lastword.weights import LayerWeights, ModelConfig, WeightsSource

# The classes that compute matmuls in each mode: plain ones, and the gate and up projections with SwiGLU. In fp8 both
# take quantised rows, and the latter return them.
_LinearClasses = tuple[
    Callable[..., Callable[[Any], Tensor]], Callable[[Tensor], Callable[[Any], Any]]
]
_MATMULS: dict[str | None, _LinearClasses] = {
    None: (kernels.Linear, kernels.SwigluLinear),
    "int8": (kernels.Int8Linear, kernels.Int8SwigluLinear),
    "fp8": (kernels.Fp8Linear, kernels.Fp8SwigluLinear),
}
Observer = Callable[[int, Tensor], None]


@dataclass(frozen=True, slots=True)
class _Batch:
    """The inputs shared by all layers of one forward."""

    plan: AttentionPlan
    cos: Tensor
    sin: Tensor
    final_rows: Tensor


class _Layer:
    """One decoder layer; the last one has separate query and key/value projections."""

    def __init__(
        self, weights: LayerWeights, config: ModelConfig, *, last: bool, quantize: str | None
    ) -> None:
        self.config = config
        self.input_norm, self.post_norm = weights.input_norm, weights.post_norm
        self.q_norm, self.k_norm = weights.q_norm, weights.k_norm
        self.scale = config.head_dim**-0.5
        q_rows = config.num_attention_heads * config.head_dim
        bias = weights.qkv_bias
        linear, swiglu_linear = _MATMULS[quantize]
        self.add_norm: Callable[..., Any] = kernels.add_rms_norm  # returns MatmulInput
        if quantize == "fp8":
            fp8 = kernels.fp8_format(weights.o.device)
            self.add_norm = partial(kernels.add_rms_norm_quantize, dtype=fp8)
        if last:
            self.q = linear(weights.qkv[:q_rows], None if bias is None else bias[:q_rows])
            self.kv = linear(weights.qkv[q_rows:], None if bias is None else bias[q_rows:])
        else:
            self.qkv = linear(weights.qkv, bias)
        self.o = linear(weights.o, weights.o_bias)
        self.gate_up = swiglu_linear(weights.gate_up)
        self.down = linear(weights.down)

    def _norm_rope(self, x: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> None:
        kernels.qk_norm_rope(
            x, self.q_norm, self.k_norm, cos, sin,
            num_heads=heads, num_kv_heads=kv_heads, eps=self.config.rms_norm_eps,
        )  # fmt: skip

    def _mlp(self, attended: Tensor, residual: Tensor) -> Tensor:
        x = self.add_norm(self.o(attended), residual, self.post_norm, self.config.rms_norm_eps)
        return self.down(self.gate_up(x))

    def forward(self, x: MatmulInput, batch: _Batch, residual: Tensor) -> Tensor:
        """Map x [T, C], the output of `add_norm`, to the MLP's output [T, C]; adds the attention to `residual`."""
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        qkv = self.qkv(x)
        self._norm_rope(qkv, batch.cos, batch.sin, heads, kv_heads)
        qkv = qkv.view(len(qkv), -1, self.config.head_dim)  # [T, H + 2·KH, D]
        q, k, v = qkv[:, :heads], qkv[:, heads:-kv_heads], qkv[:, -kv_heads:]
        attended = kernels.forest_attention(q, k, v, batch.plan, self.scale)
        return self._mlp(attended, residual)

    def forward_last(self, x: Tensor, batch: _Batch, residual: Tensor) -> Tensor:
        """Map x [T, C] to the MLP's output [N, C] for the last-token rows, to which `residual` [N, C] belongs too."""
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        rows = batch.final_rows
        q, kv = self.q(x[rows]), self.kv(x)
        self._norm_rope(q, batch.cos[rows], batch.sin[rows], heads, 0)
        self._norm_rope(kv, batch.cos, batch.sin, 0, kv_heads)
        kv = kv.view(len(kv), -1, self.config.head_dim)  # [T, 2·KH, D]
        k, v = kv[:, :kv_heads], kv[:, kv_heads:]
        q = q.view(len(q), heads, self.config.head_dim)
        attended = kernels.final_attention(q, k, v, batch.plan, self.scale)
        return self._mlp(attended, residual)


class Model:
    """A loaded Qwen3 embedding model on one device.

    `forward` maps a Forest to the final states [N', C]: the hidden state after the final norm at each distinct text's
    last token, in the compute dtype.

    Args:
        checkpoint: source of the weights.
        config: the model's config.
        device: the device to compute on.
        dtype: the compute dtype.
        quantize: "int8" quantises the matmuls of all layers (CPU, fp32); "fp8" those of all layers but the first and
            the last (GPU, bf16). Norms and attention stay in the compute dtype.
        cuda_graphs: replay small batches on a GPU as CUDA graphs; the results are bit-identical.
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
        loaded: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        # On a CPU the table stays in the memory-mapped file: only the rows of a batch are read and converted.
        table = checkpoint.embedding()
        self.embedding = table if device.type == "cpu" else table.to(device, dtype)
        self.layers = []
        for i in range(config.num_hidden_layers):
            self.layers.append(self._load_layer(checkpoint, i, quantize))
            loaded(1)
        self.norm = checkpoint.norm().to(device, dtype)
        self.inv_freq = inverse_frequencies(config.rope, config.head_dim).to(device)
        self._packer: Packer | None = None  # the CPU implementation needs no packing
        self._graphs: Graphs | None = None
        if kernels.launches_triton(device):
            with isolated(device):
                records = cuda_graphs and device.type == "cuda"
                self.use_packing(CudaCapture() if records else None)

    def _load_layer(self, checkpoint: WeightsSource, i: int, quantize: str | None) -> _Layer:
        """Load layer i; memory that it needed only while loading is freed before the next layer is read."""
        last = self.config.num_hidden_layers - 1
        weights = _place(checkpoint.layer(i, self.dtype), self.device, self.dtype)
        mode = None if quantize == "fp8" and i in (0, last) else quantize
        return _Layer(weights, self.config, last=i == last, quantize=mode)

    def use_packing(self, capture: Capture | None) -> None:
        """Pack batches for the Triton kernels from now on; with `capture`, small ones are recorded and replayed."""
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        self._packer = Packer(self.device, self.dtype, group)
        self._graphs = capture and Graphs(
            width=self.config.hidden_size, dtype=self.dtype, device=self.device, capture=capture
        )

    @property
    def token_bytes(self) -> int:
        """Peak bytes of activations per token of a batch, reached in SwiGLU."""
        c = self.config
        heads = 2 * c.num_attention_heads + 2 * c.num_key_value_heads  # q, k, v, attention output
        row = 3 * c.hidden_size + heads * c.head_dim + 3 * c.intermediate_size
        return row * self.dtype.itemsize + c.head_dim * 4  # plus cos and sin in fp32

    @torch.inference_mode()
    def forward(self, forest: Forest, observe: Observer | None = None) -> Tensor:
        """Compute the final states [N', C].

        Args:
            forest: the batch.
            observe: called as `observe(i, residual)` after layer i, counted from 0; in the last layer `residual` has
                the last-token rows only.

        Raises:
            InputError: a token id has no row in the embedding table.
        """
        check_ids(forest, self.config.vocab_size)
        with isolated(self.device):
            if self._packer is None:
                return self._forward(ModelInputs.of(forest, self.device), observe)
            finals = len(forest.final_rows)
            layout, buffer = self._packer.pack(forest, pad=observe is None)
            if layout.bucket and self._graphs is not None:
                return self._graphs.run(self._forward, layout, buffer, finals)
            inputs = layout.read(buffer.to(self.device, non_blocking=True))
            return self._forward(inputs, observe)[:finals]

    def _forward(self, inputs: ModelInputs, observe: Observer | None = None) -> Tensor:
        """Compute the final states of the last-token rows; reads no tensor on the host, so it can be recorded."""
        attention_factor = self.config.rope.attention_factor
        cos, sin = kernels.rope_tables(inputs.positions, self.inv_freq, attention_factor)
        batch = _Batch(inputs.plan, cos, sin, inputs.final_rows)
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
