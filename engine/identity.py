"""Two short fingerprints: `space` says whether vectors may be compared, `run` whether files are the same run's.

Knows how to hash settings; what the settings are, the embedder says.
"""

import hashlib
import json

# Raise it when a change of lastword's arithmetic moves vectors by more than rounding.
NUMERICS_VERSION = 1


def fingerprint(**settings: object) -> str:
    """Hash named settings to 16 hexadecimal digits; equal settings in any order give equal hashes."""
    text = json.dumps({"numerics": NUMERICS_VERSION, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
