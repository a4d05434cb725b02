"""Fixtures: a model in a plain folder, and one in a hub cache built on disk."""

import hashlib
import shutil

import pytest
from helpers.small_models import COMMIT

from lastword.bench.checkpoint import make_checkpoint


@pytest.fixture
def model(tmp_path):
    return make_checkpoint(tmp_path / "model", num_hidden_layers=1)


@pytest.fixture
def cache(tmp_path):
    """Build a hub cache with the client's layout: blobs named by hash, a snapshot of links, a branch."""
    model = make_checkpoint(tmp_path / "made", num_hidden_layers=1, shards=2)
    repo = tmp_path / "cache" / "models--owner--model"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return tmp_path / "cache"
