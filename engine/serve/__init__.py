"""The HTTP server: `lastword serve`. Follow a request from `http/app.py`; routes and limits are listed in README.md."""
