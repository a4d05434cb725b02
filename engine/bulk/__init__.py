"""Corpus jobs: embed many files into a folder, unit by unit, so that an interrupted job goes on where it stopped.

A job's folder holds `_plan.json`, which divides the input into units; for each finished unit a file of vectors and a
record in `_done/`; and nothing else that matters. Any number of processes may work on one folder.
"""
