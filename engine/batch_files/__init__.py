"""OpenAI's batch files: read a file of requests, and write the answers that the server would give to a file.

    requests.py ─ a group of requests ─► answers.py ─ their answers as lines ─► results.py

A group depends on the input alone, and no batch crosses a group. So a run that goes on where another was interrupted
writes the same bytes.
"""
