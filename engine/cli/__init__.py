"""The `lastword` command line: an entry point that runs models only through the public `Embedder` and `Reranker`."""
