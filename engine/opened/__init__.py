"""What an `Embedder` and a `Reranker` have in common once they are open: runner and loop, attributes, copies."""
