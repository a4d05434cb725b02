"""Search what `lastword embed` wrote: find its files, check that they fit the model, and read them block by block.

`find.py` decides which inputs are vectors; `made.py` checks how they were made; `matrix.py`, `lines.py` and
`parquet.py` read the three kinds of files; `codes.py` turns stored codes into vectors; `search.py` compares them.
`nearest.py` keeps the nearest so far; `lastword search` uses it for texts too.
"""
