"""The `lastword` command line: an entry point that uses the public objects (`Embedder`, `Reranker`) only."""
