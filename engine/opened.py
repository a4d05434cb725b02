"""What a model is, before anything is computed: its files, config, prompts and limits, read and checked.

`embedder.py` builds on it. Knows no device, no dtype and no forward.
"""

from collections.abc import Mapping

from torch import Tensor

from lastword.identity import fingerprint
from lastword.settings import Kind, check_dim, check_max_length, choose_prompt
from lastword.similarity import similarity, similarity_pairwise
from lastword.tokens import TextTokenizer
from lastword.weights import Checkpoint, ModelFiles, read_config, read_embedding_spec


class OpenedModel:
    """The files of a model and the caller's settings, in force once both are known to fit.

    `prompts`, `max_length` and `truncate_dim` are as `Embedder` takes them.
    """

    def __init__(
        self,
        files: ModelFiles,
        max_length: int | None,
        prompts: Mapping[str, str] | None,
        truncate_dim: int | None,
    ) -> None:
        self.files, self.name = files, files.name
        self.config = read_config(files.folder)
        self.spec = read_embedding_spec(files.folder, self.config)
        self.prompts = {**self.spec.prompts, **(prompts or {})}
        self.default_prompt_name = self.spec.default_prompt_name
        self._tokenizer = TextTokenizer(files.folder, self.config.vocab_size)
        self.max_length = self._check_max_length(max_length)
        self.truncate_dim = truncate_dim
        self.dim = check_dim(truncate_dim, self.config.hidden_size)
        self.checkpoint = self._open_checkpoint()

    def _open_checkpoint(self) -> Checkpoint:
        """Open the weights; the model benchmark puts random ones in their place."""
        return Checkpoint(self.files.folder, self.config)

    def _check_max_length(self, max_length: int | None) -> int:
        return check_max_length(
            max_length,
            default=self.spec.max_length,
            least=self._tokenizer.num_template_tokens + 1,
            limit=self.config.max_position_embeddings,
        )

    @property
    def max_seq_length(self) -> int:
        """`max_length` under sentence-transformers' name; it may be set."""
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, max_length: int) -> None:
        self.max_length = self._check_max_length(max_length)

    def resolve_prompt(
        self, prompt_name: str | None = None, prompt: str | None = None, kind: Kind | None = None
    ) -> str:
        """Find the prefix to put before every text: the prompt itself, one by name, or the kind's own.

        Raises:   ConfigError for an unknown name, listing the known ones.
        """
        if prompt is not None:
            return prompt
        return choose_prompt(self.prompts, prompt_name, self.default_prompt_name, kind)

    def get_embedding_dimension(self) -> int:
        """Width of the vectors that `encode` gives."""
        return self.dim

    def _dim(self, truncate_dim: int | None) -> int:
        return (
            self.dim if truncate_dim is None else check_dim(truncate_dim, self.config.hidden_size)
        )

    # Comparing, and knowing what may be compared.

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare every vector of a with every one of b by the model's own similarity: [N, M] fp32."""
        return similarity(a, b, self.spec.similarity)

    def similarity_pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare row i of a with row i of b by the model's own similarity: [N] fp32."""
        return similarity_pairwise(a, b, self.spec.similarity)

    def space_fingerprint(self, truncate_dim: int | None = None) -> str:
        """Hash what a vector's meaning depends on: vectors may be compared where it is equal."""
        return fingerprint(
            weights=self.checkpoint.fingerprint,
            tokenizer=self._tokenizer.file_hash,
            config=repr(self.config),
            normalize=self.spec.normalize,
            dim=self._dim(truncate_dim),
        )
