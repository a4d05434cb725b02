"""The keys and values of prompts, computed once and kept for later calls.

Keys and values come from a forward of the prompt alone, so a text's vector has the same bits whether or not the prompt
was already in the cache. Only prompts are kept, never texts. This module knows token ids, but no forests or weights.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

from torch import Tensor

# Beyond either limit, the least recently used prompts are dropped; the one used last always stays.
MAX_PROMPTS = 8
MAX_BYTES = 256 << 20
# A prompt whose keys and values take more bytes than this is not cached; its tokens are packed with each text's.
MAX_PROMPT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class KeysValues:
    """The keys and values of a prompt of P tokens: for each layer [P, 2·KH, D], keys first, in the compute dtype."""

    layers: list[Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all layers."""
        return sum(layer.nbytes for layer in self.layers)


class PromptCache:
    """Keeps the keys and values of a model's most recently used prompts, by the prompts' token ids."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], KeysValues] = OrderedDict()
        self._lock = Lock()

    def get(
        self, prompt: tuple[int, ...], compute: Callable[[Sequence[int]], KeysValues]
    ) -> KeysValues:
        """Return a prompt's keys and values; compute them if they are not kept. Other threads wait meanwhile."""
        with self._lock:
            if prompt not in self._kept:
                self._kept[prompt] = compute(prompt)
            self._kept.move_to_end(prompt)
            found = self._kept[prompt]
            while len(self._kept) > MAX_PROMPTS or (
                len(self._kept) > 1 and self.nbytes > MAX_BYTES
            ):
                self._kept.popitem(last=False)
        return found

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all kept prompts."""
        return sum(kept.nbytes for kept in self._kept.values())

    def clear(self) -> None:
        """Forget all prompts."""
        with self._lock:
            self._kept.clear()
