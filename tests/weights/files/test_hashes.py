"""Hashes of a model's files: checked against the hub's in a hub cache, only computed in a plain folder."""

import hashlib

import pytest
from helpers.small_models import snapshot_of

from lastword.errors import WeightsError
from lastword.weights import hash_files


def test_known_hashes_are_checked(cache):
    folder = snapshot_of(cache)
    hashes = hash_files(folder)
    shards = [each for each in hashes if each.file.endswith(".safetensors")]
    assert len(shards) == 2
    assert {"config.json", "tokenizer.json", "1_Pooling/config.json"} < {e.file for e in hashes}
    assert all(each.whole and each.expected == each.sha256 for each in hashes)
    blob = (folder / shards[0].file).resolve()
    raw = bytearray(blob.read_bytes())
    raw[-5] ^= 1  # one bit of one weight
    blob.write_bytes(bytes(raw))
    damaged = [each for each in hash_files(folder) if not each.whole]
    assert [each.file for each in damaged] == ["model-00001-of-00002.safetensors"]
    assert damaged[0].expected == shards[0].sha256 != damaged[0].sha256


def test_a_plain_folder_knows_no_hash(model):
    hashes = {each.file: each for each in hash_files(model)}
    assert {each.whole for each in hashes.values()} == {None}
    weights = (model / "model.safetensors").read_bytes()
    assert hashes["model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()


def test_a_file_that_cannot_be_hashed_is_named(model):
    (model / "modules.json").unlink()
    (model / "modules.json").symlink_to("gone")
    with pytest.raises(WeightsError) as caught:
        hash_files(model)
    assert caught.value.where == str(model / "modules.json")
    assert caught.value.what == "a link that leads nowhere"
