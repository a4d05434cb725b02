"""What `Embedder` and `Reranker` have in common: opening a loop, attributes from `info`, copies and pickles."""
