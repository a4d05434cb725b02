"""`lastword convert`: the same model in another dtype, or in files of another size."""

import argparse

from lastword.cli.folder import write_folder

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", None: None}


def run(args: argparse.Namespace) -> int:
    """Run the command; see `main.py` for its options."""
    import torch

    from lastword.weights.blocks import workers
    from lastword.weights.convert import Conversion
    from lastword.weights.stored import open_stored

    name = _DTYPES[args.dtype]
    dtype = None if name is None else getattr(torch, name)
    model = open_stored(args.model, local_files_only=args.local_files_only)
    with workers() as threads:
        write_folder(args, Conversion(model, dtype, threads), "Converting")
    return 0
