"""`lastword convert`: write a model in another dtype, in files of another size, or with a LoRA adapter merged in."""

import argparse
from pathlib import Path

from lastword.cli import options
from lastword.cli.model_folder import add_folder_options, write_folder

ABOUT = "copy a model with another dtype, with weight files of another size, or with a LoRA adapter merged in"
EXAMPLES = """examples:
  lastword convert Qwen/Qwen3-Embedding-0.6B ./model-f32 --dtype float32
  lastword convert ./model-f32 ./model-bf16 --dtype bfloat16 --shard-size 2GB
  lastword convert owner/model@v1.0 ./model --dtype bfloat16
  lastword convert Qwen/Qwen3-Embedding-0.6B ./tuned --adapter ./my-lora

id@revision names a branch, tag or commit of a Hugging Face model. Every copied file, other than the weights, must be
inside the model's folder: a link that leads out of the folder is an error, except within the cache of the Hugging Face
Hub. With --adapter the model card is not copied, because it describes the model without the adapter."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "model",
        type=options.model_argument,
        metavar="MODEL",
        help="model to convert: a Hugging Face id, id@revision or a folder",
    )
    add_folder_options(parser)
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of the new weights; by default each weight keeps its stored dtype",
    )
    parser.add_argument(
        "--adapter",
        type=options.path_argument,
        metavar="DIR",
        help="folder of a LoRA adapter of MODEL, as peft and sentence-transformers save it; it is added to the weights",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    import torch

    from lastword.weights.files.blocks import block_threads
    from lastword.weights.lora.adapter import read_adapter
    from lastword.weights.merging.convert import Conversion
    from lastword.weights.merging.stored import open_stored

    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    adapter = None if args.adapter is None else read_adapter(Path(args.adapter))
    model = open_stored(args.model, local_files_only=args.local_files_only)
    with block_threads() as threads:
        write_folder(args, Conversion(model, dtype, threads, adapter), "Converting")
    return 0
