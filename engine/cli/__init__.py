"""The command line `lastword`: an entry point that calls `Embedder` and never reaches past it."""
