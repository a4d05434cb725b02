"""The counts of a run, such as texts and tokens: the engine counts, and the entry points print or return them."""

from dataclasses import dataclass


@dataclass(slots=True)
class Report:
    """Counts of one run.

    Args:
        texts: number of texts.
        tokens_requested: tokens of all texts and their prompts, after any cut; shared tokens count for every text.
        tokens_computed: tokens that the forwards of the batches computed; a prefix that several texts of a batch share
            counts once.
        tokens_cached: prompt tokens whose keys and values came from the prompt cache; each prompt counts once per
            batch. The forward of a prompt alone, which fills the cache, is not counted anywhere.
        cut: number of texts that were cut because they were longer than max_length.
        unknown: number of texts with words or characters that the tokenizer does not know. The tokenizer maps all such
            words to the same token, or drops them, so texts that differ only in such words have equal vectors. Qwen's
            own tokenizers know every character.
        unknown_word: the first such word; "" if there is none.
        batches: number of batches.
        seconds: wall time of the run.
    """

    texts: int = 0
    tokens_requested: int = 0
    tokens_computed: int = 0
    tokens_cached: int = 0
    cut: int = 0
    unknown: int = 0
    unknown_word: str = ""
    batches: int = 0
    seconds: float = 0.0

    def add(self, other: "Report") -> None:
        """Add the counts of another run to this one."""
        self.unknown_word = self.unknown_word or other.unknown_word
        for name in set(self.__slots__) - {"unknown_word"}:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def tokens_saved(self) -> int:
        """Tokens saved by sharing prefixes: tokens requested, minus tokens computed and tokens cached."""
        return self.tokens_requested - self.tokens_computed - self.tokens_cached

    @property
    def tokens_per_second(self) -> float:
        """Tokens requested per second of wall time."""
        return self.tokens_requested / self.seconds if self.seconds else 0.0
