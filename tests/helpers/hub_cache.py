"""The model that tests keep in a hub cache, and where it stands there."""

COMMIT = "97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3"
NAME = "owner/model"


def snapshot_of(cache):
    return cache / "models--owner--model" / "snapshots" / COMMIT
