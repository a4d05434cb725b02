"""The HTTP server: `lastword serve`. A request enters in `http/app.py`; README.md lists routes and limits."""
