"""The `lastword` command line: an entry point that uses the public `Embedder` only."""
