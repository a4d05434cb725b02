"""`lastword convert`: the same model in another dtype, or in files of another size."""

import argparse

from lastword.cli.folder import write_folder


def run(args: argparse.Namespace) -> int:
    """Run the command; see `main.py` for its options."""
    from lastword.weights.blocks import workers
    from lastword.weights.convert import Conversion
    from lastword.weights.mapping import DTYPES
    from lastword.weights.stored import open_stored

    dtype = None if args.dtype is None else DTYPES[args.dtype.upper()]
    model = open_stored(args.model, local_files_only=args.local_files_only)
    with workers() as threads:
        write_folder(args, Conversion(model, dtype, threads), "Converting")
    return 0
