"""Open a recipe's models, check that they can be merged, and merge them as a job for `job.py`.

The models and settings are checked before anything is written. Only a few blocks of a tensor are in memory at a time.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from lastword.errors import InputError, WeightsError
from lastword.weights.checkpoint import Checkpoint
from lastword.weights.files.blocks import BlockThreads, blocks
from lastword.weights.files.companions import CARD, check_companions, copy_companions
from lastword.weights.files.dtypes import torch_dtype
from lastword.weights.files.file_tensor import FileTensor, open_tensor
from lastword.weights.files.writer import TensorSpec, TensorSpecs
from lastword.weights.merging import methods
from lastword.weights.merging.compatibility import (
    check_agreement,
    check_tokenizer_source,
    notices,
)
from lastword.weights.merging.model_card import merge_card
from lastword.weights.merging.recipe import Recipe
from lastword.weights.merging.stored import not_finite_error, open_stored
from lastword.weights.merging.tensor_merge import TensorMerge
from lastword.weights.tensor_names import LM_HEAD


class Merge:
    """A checked merge, ready for `write_model`.

    Args:
        recipe: the models and the method.
        threads: the threads for the arithmetic.
        local_files_only: whether to do without the network for models named by a hub id.

    Raises:
        WeightsError: a model is missing or damaged, or its tensors or tokens differ from the first model's.
        ConfigError: a setting is not supported, or differs from the first model's.
        InputError: the weights sum to zero, so they cannot be normalised.
    """

    specs: TensorSpecs
    identity: dict[str, object]
    notices: list[str]
    inputs: set[Path]  # all files from which the new model is made

    def __init__(
        self, recipe: Recipe, threads: BlockThreads, *, local_files_only: bool = False
    ) -> None:
        self.recipe, self._threads = recipe, threads
        if recipe.normalize:
            methods.shares(recipe.weights, normalize=True)  # refuses weights that sum to zero
        named = (recipe.donor, *recipe.models, *([recipe.base] if recipe.base else []))
        self.opened = {
            name: open_stored(name, local_files_only=local_files_only)
            for name in dict.fromkeys(named)
        }
        everyone = list(self.opened.values())
        check_agreement(everyone, one_dtype=recipe.dtype is None)
        self.donor = self.opened[recipe.donor]
        if recipe.tokenizer is not None:
            check_tokenizer_source(recipe.tokenizer, self.donor, self.opened[recipe.tokenizer])
        check_companions(self.donor.folder)
        self.notices = notices(self.donor, everyone)
        headed = all(LM_HEAD in model.tensors for model in everyone)
        kept = [name for name in self.donor.tensors if name != LM_HEAD or headed]
        self._plain = {self.donor.keys[name]: name for name in kept}
        self.specs = {key: self._spec(name) for key, name in self._plain.items()}
        prints = {name: model.fingerprint for name, model in self.opened.items()}
        self.identity = {"recipe": recipe.text, "models": prints}
        self.inputs = set().union(*(model.inputs() for model in everyone))
        self._facts: dict[str, dict[str, Any]] = {}

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Merge one tensor and yield it in pieces; `facts` may be called after the last piece."""
        plain, recipe = self._plain[name], self.recipe
        # Merging a single model returns the model itself, so the base is not needed.
        alone = recipe.method == "multislerp" and len(recipe.models) == 1
        dtype, shape = self.specs[name]
        with ExitStack() as stack:
            tensors = [stack.enter_context(self._open(model, plain)) for model in recipe.models]
            named = None if alone else recipe.base
            base = None if named is None else stack.enter_context(self._open(named, plain))
            work = TensorMerge(tensors, base, dtype, self._threads)
            try:
                yield from work.run(recipe)
                facts = methods.describe(work.products, work.coefficients)
                self._facts[name] = {"tensor": name, "shape": list(shape), **facts}
            except InputError as problem:
                raise self._not_finite(name) or WeightsError(
                    f"tensor {name}",
                    problem.what,
                    got=problem.got,
                    expected=problem.expected,
                    remedy=problem.remedy,
                ) from None

    def facts(self, name: str) -> dict[str, Any]:
        """Return a merged tensor's name and shape, and what `methods.describe` says about its merge."""
        return self._facts[name]

    def finish(self, folder: Path) -> None:
        """Write the model card and copy the donor's companion files."""
        fingerprint = Checkpoint(folder, self.donor.config).fingerprint
        card = merge_card(self.recipe, self.opened, self.specs, fingerprint)
        (folder / CARD).write_text(card, encoding="utf-8")
        copy_companions(self.donor.folder, folder, {spec.dtype for spec in self.specs.values()})

    def _spec(self, plain: str) -> TensorSpec:
        info = self.donor.tensors[plain]
        return TensorSpec(self.recipe.dtype or torch_dtype(info.dtype), info.shape)

    def _open(self, model: str, plain: str) -> AbstractContextManager[FileTensor]:
        return open_tensor(self.opened[model].tensors[plain], plain)

    def _not_finite(self, name: str) -> WeightsError | None:
        """Create the error for the first model with NaN or infinity in this tensor; None if no model has any."""
        plain = self._plain[name]
        for model in self.opened:
            with self._open(model, plain) as tensor:
                if not all(tensor[block].isfinite().all() for block in blocks(tensor.numel())):
                    return not_finite_error(model, name)
        return None
