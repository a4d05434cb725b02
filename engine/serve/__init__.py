"""The HTTP server: `lastword serve`. Follow a request from `app.py`; routes and limits are listed in README.md."""
