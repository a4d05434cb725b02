"""Small batches as CUDA graphs: the kernel launches of a bucket's forward are recorded once, then replayed by one call.

A graph reads and writes memory at fixed addresses, so each bucket has its own buffers. A batch is copied in, and its
states are copied out before the next batch. This module knows nothing about texts or weights.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from lastword.batching.packing import BucketLayout, ModelInputs
from lastword.errors import LastwordWarning

# Runs a function at least once, and returns a function that repeats its work on the same memory.
Capture = Callable[[Callable[[], None]], Callable[[], None]]
# Maps inputs to final states [N, C], without reading the inputs on the host.
Forward = Callable[[ModelInputs], Tensor]


class CudaCapture:
    """Records the kernels that a function launches on the current device. All graphs of one object share a memory pool.

    The function runs once before it is recorded, on the same stream, because a recording must not compile kernels or
    allocate a library's workspace. During a recording, other threads may use the device, but must not record or call
    `torch.cuda.synchronize`, since CUDA would then abort the recording.
    """

    _recording = Lock()

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Graphs are kept even if their recording failed: since PyTorch 2.12 a deleted graph frees its stream's cuBLAS
        # workspace, which the other graphs still use.
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        with self._recording:
            return self._record(run)

    def _record(self, run: Callable[[], None]) -> Callable[[], None]:
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)
        recording = torch.cuda.graph(
            graph, self._pool, self._stream, capture_error_mode="thread_local"
        )
        # Makes the caller's stream current again at the end, even if the recording fails.
        with torch.cuda.stream(caller):
            try:
                with torch.cuda.stream(self._stream):
                    run()
                with recording:
                    run()
            finally:  # the first run wrote to memory that the caller's stream may write next
                caller.wait_stream(self._stream)
        return graph.replay


@dataclass(frozen=True, slots=True)
class _Bucket:
    """One bucket's buffers ([layout.size], int32, for the inputs; [N, C] for the states) and its graph."""

    inputs: Tensor
    states: Tensor
    replay: Callable[[], None]


class Graphs:
    """The graphs of one model's forward, one per bucket. A bucket is recorded when its first batch comes.

    This object keeps no reference to the model, so the model's memory is freed with the caller's last reference. There
    is one exception: a bucket that could not be recorded refers to the forward, and so to the model.
    """

    def __init__(
        self, *, width: int, dtype: torch.dtype, device: torch.device, capture: Capture
    ) -> None:
        self._capture = capture
        self._width, self._dtype, self._device = width, dtype, device
        self._buckets: dict[BucketLayout, _Bucket] = {}
        self._lock = Lock()  # the buffers have room for one batch at a time
        # An event on the stream, after the previous batch's states were copied out of the buffers.
        self._done: torch.cuda.Event | None = None

    def run(self, forward: Forward, layout: BucketLayout, buffer: Tensor, finals: int) -> Tensor:
        """Compute the final states [finals, C] of a batch that was packed into a bucket's layout.

        The result is a copy that belongs to the caller. All work is queued on the current stream.

        Args:
            forward: computes the states; must be the same in every call.
            layout: the bucket's layout.
            buffer: the packed batch on the host.
            finals: number of last-token rows of the batch, without padding.
        """
        with self._lock:
            if self._done is not None:  # the previous batch may have run on another stream
                torch.cuda.current_stream().wait_event(self._done)
            bucket = self._buckets.get(layout)
            if bucket is None:
                bucket = self._buckets[layout] = self._record(forward, layout, buffer)
            bucket.inputs.copy_(buffer, non_blocking=True)
            bucket.replay()
            states = bucket.states[:finals].clone()
            if self._device.type == "cuda":
                self._done = torch.cuda.current_stream().record_event(self._done)
            return states

    def _record(self, forward: Forward, layout: BucketLayout, buffer: Tensor) -> _Bucket:
        """Record a bucket's forward. `buffer`, its first batch, is the input of the run before the recording."""
        inputs = buffer.to(self._device, copy=True)
        states = torch.empty(layout.finals, self._width, dtype=self._dtype, device=self._device)

        def run() -> None:
            states.copy_(forward(layout.read(inputs)))

        try:
            replay = self._capture(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Do not try again: the cause, such as a thread that calls `synchronize`, may persist.
            problem = str(error).partition("\n")[0]
            warnings.warn(
                LastwordWarning(
                    "cuda_graphs",
                    f"a batch of {layout.rows} rows could not be recorded",
                    got=repr(problem),
                    remedy="Such batches are launched kernel by kernel: correct, but slower.",
                ),
                stacklevel=2,
            )
            replay = run
        return _Bucket(inputs, states, replay)
