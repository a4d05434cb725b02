"""The function that the console script calls: Ctrl-C prints one line, even while the other modules are being imported.

This module and `lastword/__init__.py` import only modules that Python itself imports when it starts. So both are loaded
almost at once; only before that can Ctrl-C cause a traceback.
"""

import os

from lastword import limit_spinning

STOPPED = "stopped", 130  # the message after Ctrl-C, and the exit status


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        limit_spinning()
        from lastword.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # during the import; once `run` has begun, it handles Ctrl-C itself
        message, status = STOPPED
        try:  # noqa: SIM105  contextlib is not imported
            os.write(2, f"lastword: {message}\n".encode())
        except OSError:  # stderr is closed or full
            pass
        return status
