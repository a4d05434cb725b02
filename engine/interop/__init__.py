"""Adapters for libraries that take an embedding model: LangChain and LlamaIndex.

Doors: each file imports its library, which must be installed, and calls `Embedder` alone.
"""
