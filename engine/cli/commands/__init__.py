"""One module per command of `lastword`."""
