"""OpenAI's batch files: read a file of requests, and write to another file the answers that the server would give.

    requests.py ─ a group of requests ─► answers.py ─ their answers as lines ─► results.py

A group depends on the input alone, and no batch has texts of two groups. So a run that continues an interrupted one
writes the same bytes.
"""
