"""Search the vectors that `lastword embed` wrote: find the files, check that they fit the model, read them in blocks.

`find.py` decides which inputs are vectors; `made.py` checks how they were made; `matrix.py`, `lines.py` and
`parquet.py` read the three kinds of files; `codes.py` turns stored codes into vectors; `search.py` compares the vectors
with the queries. `nearest.py` keeps the items nearest to each query; `lastword search` uses it for texts too.
"""
