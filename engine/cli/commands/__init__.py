"""The commands of `lastword`, one module per command; only `bench` is elsewhere, in `bench/command.py`."""
