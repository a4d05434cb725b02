"""Small batches as CUDA graphs: the launches of a bucket's forward are recorded once and replayed by a single call.

A graph reads and writes memory at fixed addresses: each bucket owns its buffers, a batch is copied in and its states
are copied out before the next one. Knows layouts and a forward, no texts and no weights.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from lastword.batching.packing import Inputs, Layout
from lastword.errors import LastwordWarning

# Runs what it is given once or more, and returns a function that does the same again on the same memory.
Capture = Callable[[Callable[[], None]], Callable[[], None]]
# Maps inputs to final states [N, C], without a look at their contents on the host.
Forward = Callable[[Inputs], Tensor]


class CudaCapture:
    """Record what a function launches on the current device; all graphs share one pool of memory.

    It runs once before, on the stream it is recorded on: kernels are compiled and libraries take their memory there,
    which a recording must not contain. Other threads may use the device meanwhile, but neither record nor wait for all
    of it (`torch.cuda.synchronize`): CUDA would break the recording off.
    """

    _recording = Lock()

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Failed ones too: from PyTorch 2.12 on a graph that goes takes its stream's cuBLAS workspace from the rest.
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
        # Its exit leaves the side stream, also where recording fails.
        with torch.cuda.stream(caller):
            try:
                with torch.cuda.stream(self._stream):
                    run()
                with recording:
                    run()
            finally:  # the first run has written what the caller's stream may write next
                caller.wait_stream(self._stream)
        return graph.replay


@dataclass(frozen=True, slots=True)
class _Bucket:
    """One bucket's buffers, int32 [layout.size] in and [N, C] out, and its graph."""

    inputs: Tensor
    states: Tensor
    replay: Callable[[], None]


class Graphs:
    """The graphs of one model's forward, one per bucket, recorded when a batch of the bucket first comes.

    Holds no reference to the model, whose memory then goes with the model's last one; only a bucket that could not be
    recorded does.
    """

    def __init__(
        self, *, width: int, dtype: torch.dtype, device: torch.device, capture: Capture
    ) -> None:
        self._capture = capture
        self._width, self._dtype, self._device = width, dtype, device
        self._buckets: dict[Layout, _Bucket] = {}
        self._lock = Lock()  # buffers hold one batch at a time
        self._done: torch.cuda.Event | None = None  # the batch before has left the buffers

    def run(self, forward: Forward, layout: Layout, buffer: Tensor, finals: int) -> Tensor:
        """Compute the final states [finals, C] of a batch that was packed into a bucket's layout.

        They are the caller's own. All work is put on the current stream; `forward` must be the same at every call.
        """
        with self._lock:
            if self._done is not None:  # it may have been on another stream
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

    def _record(self, forward: Forward, layout: Layout, buffer: Tensor) -> _Bucket:
        """Record a bucket on its first batch: what runs before the recording needs inputs that make sense."""
        inputs = buffer.to(self._device, copy=True)
        states = torch.empty(layout.finals, self._width, dtype=self._dtype, device=self._device)

        def run() -> None:
            states.copy_(forward(layout.read(inputs)))

        try:
            replay = self._capture(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # What breaks a recording, such as another thread that waits for the whole device, may do so each time.
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
