"""`lastword bench bulk`: time corpus jobs beside `encode` and beside other ways to embed a corpus."""
