"""What the console script calls: Ctrl-C ends the command with one line while its modules are imported, too.

Imports nothing that Python has not imported at its start, as `lastword` itself: so only that start can be interrupted.
"""

import os

STOPPED = "stopped", 130  # what is said on Ctrl-C, and the exit status


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        from lastword.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # `run` handles it once it has begun
        message, status = STOPPED
        try:  # noqa: SIM105  contextlib is not imported
            os.write(2, f"lastword: {message}\n".encode())
        except OSError:  # stderr is closed or full
            pass
        return status
