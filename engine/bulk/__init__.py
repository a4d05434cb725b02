"""Corpus jobs: embed many files into a folder, unit by unit, so that an interrupted job goes on where it stopped.

A job's folder holds `_plan.json`, which divides the input into units, and for each finished unit its vectors and a
record in `_done/`; `job.py` lists all files. Any number of processes may work on one folder.
"""
