"""The command line `lastword`: a door that calls `Embedder` and never reaches past it."""
