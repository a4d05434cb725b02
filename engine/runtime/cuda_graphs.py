"""Small batches as CUDA graphs: the kernel launches of a bucket's forward are recorded once, then replayed by one call.

All graphs are recorded while the model is warmed up, largest first, so that they share the memory of the largest, and
no request waits for a recording. A graph reads and writes memory at fixed addresses, so each bucket has its own
buffers. A batch is copied in, and its states are copied out before the next batch. This module knows nothing about
texts or weights.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lastword.batching.packing import BucketLayout, ModelInputs
from lastword.errors import LastwordWarning

# Maps inputs to final states [N, C], without reading the inputs on the host.
Forward = Callable[[ModelInputs], Tensor]


class Recorder(Protocol):
    """Records the work that a function starts on a device."""

    def rehearse(self, run: Callable[[], None]) -> None:
        """Run the function, and wait for its work; what it raises is raised as it is.

        A recording must not compile kernels or load libraries; a rehearsal does that.
        """

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record the function, and return a function that repeats its work on the same memory.

        Raises:
            RuntimeError: the function could not be recorded.
        """


_RECORDING = Lock()  # held during a recording


class CudaRecorder:
    """Records the kernels that a function launches on the current device. All graphs of one object share a memory pool.

    During a recording, other threads may use the device, but must not record, call `torch.cuda.synchronize` (CUDA would
    abort the recording) or call `torch.cuda.empty_cache` (use this module's `empty_cache`).
    """

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        # Not the stream of the recordings: cuBLAS has a workspace per stream. It must be allocated in the first
        # recording, from the graphs' own memory pool, because other memory might be freed under the graphs.
        self._rehearsals = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Graphs are kept even if their recording failed: since PyTorch 2.12 a deleted graph frees its stream's cuBLAS
        # workspace, which the other graphs still use.
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def rehearse(self, run: Callable[[], None]) -> None:
        caller = torch.cuda.current_stream()
        self._rehearsals.wait_stream(caller)
        try:
            with torch.cuda.stream(self._rehearsals):
                run()
        finally:  # it wrote to memory that the caller's stream may write next
            caller.wait_stream(self._rehearsals)
        self._rehearsals.synchronize()  # an error of a kernel appears here, not in the recording

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        with _RECORDING:
            try:
                return self._record(run)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # another thread has called `synchronize`; it may not do so again
                return self._record(run)

    def _record(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)
        recording = torch.cuda.graph(
            graph, self.pool, self._stream, capture_error_mode="thread_local"
        )
        try:
            # Makes the caller's stream current again at the end, even if the recording fails.
            with torch.cuda.stream(torch.cuda.current_stream()), recording:
                run()
        except BaseException:
            self._leave_pool()
            raise
        return graph.replay

    def _leave_pool(self) -> None:
        """End an aborted recording's use of the pool, and record into a new pool from now on.

        PyTorch leaves the pool open if CUDA has aborted the recording. It would then refuse to record into the pool
        again, and the allocator would not return unused memory any more.
        """
        with suppress(RuntimeError):  # it was ended after all
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)
        self.pool = torch.cuda.graph_pool_handle()


def empty_cache() -> None:
    """Do the same as `torch.cuda.empty_cache`, but not during a recording, when some versions of PyTorch refuse it."""
    with _RECORDING:
        torch.cuda.empty_cache()


class _Recorded(NamedTuple):
    """One bucket's buffers ([layout.size], int32, for the inputs; [N, C] for the states) and its graph."""

    inputs: Tensor
    states: Tensor
    replay: Callable[[], None]


class Graphs:
    """The graphs of one model's forward, one per bucket.

    This object keeps no reference to the model, so the model's memory is freed with the caller's last reference.

    Args:
        width: C, the number of values of a state.
        dtype: dtype of the states.
        device: the device.
        recorder: records the graphs.
    """

    def __init__(
        self, *, width: int, dtype: torch.dtype, device: torch.device, recorder: Recorder
    ) -> None:
        self._recorder = recorder
        self._width, self._dtype, self._device = width, dtype, device
        self._recorded: dict[BucketLayout, _Recorded] = {}
        self._lock = Lock()  # the buffers have room for one batch at a time
        # An event on the stream, after the previous batch's states were copied out of the buffers.
        self._done: torch.cuda.Event | None = None

    def __contains__(self, layout: BucketLayout) -> bool:
        """Return whether the layout's bucket is recorded."""
        return layout in self._recorded

    def run(self, layout: BucketLayout, buffer: Tensor, finals: int) -> Tensor:
        """Compute the final states [finals, C] of a batch that was packed into a recorded bucket's layout.

        The result is a copy that belongs to the caller. All work is queued on the current stream.

        Args:
            layout: the bucket's layout.
            buffer: the packed batch on the host.
            finals: number of last-token rows of the batch, without padding.
        """
        with self._lock:
            if self._done is not None:  # the previous batch may have run on another stream
                torch.cuda.current_stream().wait_event(self._done)
            bucket = self._recorded[layout]
            try:
                bucket.inputs.copy_(buffer, non_blocking=True)
                bucket.replay()
                return bucket.states[:finals].clone()
            finally:  # even if there is no memory for the copy: the next batch must not overwrite this one's inputs
                if self._device.type == "cuda":
                    self._done = torch.cuda.current_stream().record_event(self._done)

    def record(self, forward: Forward, batches: Sequence[tuple[BucketLayout, Tensor]]) -> None:
        """Record the buckets that are not recorded yet, in the order given; each is rehearsed first.

        A bucket that cannot be recorded, or for which memory is lacking, is left out: its batches are launched kernel
        by kernel. One warning counts them.

        Args:
            forward: computes the states.
            batches: for each bucket its layout and a batch in that layout, on the host.

        Raises:
            Exception: what the forward itself raises in a rehearsal, apart from a lack of memory.
        """
        problems: list[tuple[int, str]] = []
        for layout, buffer in batches:
            with self._lock:
                if layout in self._recorded:
                    continue
                try:
                    self._recorded[layout] = self._record(forward, layout, buffer)
                except _NotRecordedError as error:
                    problems.append((layout.rows, str(error)))
        if problems:
            sizes = ", ".join(map(str, sorted({rows for rows, _ in problems})))
            warnings.warn(
                LastwordWarning(
                    "cuda_graphs",
                    f"batches of {sizes} rows could not be recorded",
                    got=repr(problems[0][1]),
                    remedy="Such batches are launched kernel by kernel: correct, but slower.",
                ),
                stacklevel=2,
            )

    def _record(self, forward: Forward, layout: BucketLayout, buffer: Tensor) -> _Recorded:
        try:
            inputs = buffer.to(self._device, copy=True)
            shape = layout.finals, self._width
            states = torch.empty(shape, dtype=self._dtype, device=self._device)

            def run() -> None:
                states.copy_(forward(layout.read(inputs)))

            self._recorder.rehearse(run)
        except torch.OutOfMemoryError as error:
            raise _NotRecordedError(str(error).partition("\n")[0]) from None
        try:
            return _Recorded(inputs, states, self._recorder.record(run))
        except RuntimeError as error:  # such as that of a thread that calls `synchronize`
            raise _NotRecordedError(str(error).partition("\n")[0]) from None


class _NotRecordedError(Exception):
    """A bucket could not be recorded; the text is the first line of the cause."""
