"""The commands of `lastword`, one module per command."""
