"""Tensors read in slices equal mapped ones, also from several threads; unreadable files are named."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.messages import refusal

from lastword.errors import WeightsError
from lastword.weights import write_safetensors
from lastword.weights.files.file_tensor import map_tensor, open_tensor
from lastword.weights.files.header import read_header
from lastword.weights.merging.tensor_merge import PIECE, RowReader

SIZE = 2 * PIECE + 7


def draw(seed: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def stored(tmp_path):
    """Write two tensors of each dtype, with names such as `0.bfloat16`."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    tensors = {f"{i}.{name}": draw(i, dtype) for i in (0, 1) for name, dtype in dtypes.items()}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    return read_header(tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stretch", [64, 4 << 20])
def test_slices(stored, dtype, stretch, monkeypatch):
    monkeypatch.setattr("lastword.weights.files.file_tensor._READ_AHEAD", stretch)
    info = stored[f"0.{dtype}"]
    expected = map_tensor(info, dtype)
    with open_tensor(info, dtype) as tensor:
        assert (tensor.numel(), tensor.dtype) == (SIZE, expected.dtype)
        for start, stop in [(0, 1), (0, SIZE), (SIZE - 1, SIZE), (3, 1000), (PIECE, PIECE + 9)]:
            assert torch.equal(tensor[start:stop], expected[start:stop])


def test_each_thread_has_its_own_buffer(stored):
    expected = map_tensor(stored["0.float32"], "t")
    with open_tensor(stored["0.float32"], "t") as tensor, ThreadPoolExecutor(1) as other:
        mine = tensor[0:100]
        assert torch.equal(
            other.submit(lambda: tensor[100:200].clone()).result(), expected[100:200]
        )
        assert torch.equal(mine, expected[:100])


@pytest.mark.parametrize("with_base", [False, True], ids=["plain", "base"])
@pytest.mark.parametrize("block", [None, slice(5, PIECE), slice(PIECE - 1, SIZE)])
def test_rows_of_stored_tensors(stored, with_base, block):
    first, second = (map_tensor(stored[f"{i}.float32"], "t").double() for i in (0, 1))
    with (
        open_tensor(stored["0.float32"], "t") as x,
        open_tensor(stored["1.float32"], "t") as y,
    ):
        rows = RowReader([x, y] if not with_base else [x], y if with_base else None)
        expected = [first - second] if with_base else [first, second]
        reached = (block or slice(0, SIZE)).start
        for piece in rows.pieces(block):
            assert piece.place.start == reached
            assert torch.equal(piece.rows, torch.stack([each[piece.place] for each in expected]))
            assert piece.base is None or torch.equal(piece.base, second[piece.place])
            assert (piece.base is not None) is with_base
            reached = piece.place.stop
        assert reached == (block or slice(0, SIZE)).stop


def test_short_reads_are_gone_on_with(stored, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: real(fd, [into[0][:1000]], at))
    with open_tensor(stored["0.float32"], "t") as tensor:
        assert torch.equal(tensor[0:SIZE], map_tensor(stored["0.float32"], "t"))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_the_disk_is_asked_ahead_once_a_stretch(stored, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, advice: asked.append(start))
    monkeypatch.setattr("lastword.weights.files.file_tensor._READ_AHEAD", 4096)
    with open_tensor(stored["0.float32"], "t") as tensor:
        for start in range(0, 10240, 512):  # 40 KiB by 2 KiB
            tensor[start : start + 512]
    steps = [later - earlier for earlier, later in itertools.pairwise(asked[1:])]
    assert (len(asked), set(steps)) == (11, {4096})


def test_a_system_that_cannot_be_asked_ahead(stored, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    with open_tensor(stored["0.float32"], "t") as tensor:
        assert torch.equal(tensor[0:SIZE], map_tensor(stored["0.float32"], "t"))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_a_disk_that_takes_no_advice(stored, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    with open_tensor(stored["0.float32"], "t") as tensor:
        assert torch.equal(tensor[0:SIZE], map_tensor(stored["0.float32"], "t"))


def test_a_file_that_became_shorter(stored):
    info = stored["1.float16"]  # the last one
    with open_tensor(info, "t") as tensor:
        os.truncate(info.file, info.start + 100)
        assert len(tensor[0:50]) == 50
        with pytest.raises(WeightsError) as caught:
            tensor[0:51]
    assert vars(caught.value) == vars(
        WeightsError(
            f"{info.file}: tensor t",
            "cut off",
            got="100 bytes",
            expected=f"102 from byte {info.start}",
            remedy="The file changed while it was read: download it again.",
        )
    )


def test_a_file_that_is_gone(stored):
    info = stored["0.float32"]
    info.file.unlink()
    with pytest.raises(WeightsError) as caught, open_tensor(info, "t"):
        pass
    assert caught.value.where == f"{info.file}: tensor t"
    assert caught.value.what == "cannot be read (No such file or directory)"


def test_a_read_that_fails(stored, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    info = stored["0.float32"]
    with open_tensor(info, "t") as tensor, pytest.raises(WeightsError) as caught:
        tensor[0:1]
    assert caught.value.where == f"{info.file}: tensor t"
    assert caught.value.what == "cannot be read (Input/output error)"


def open_slices(info, name):
    with open_tensor(info, name):
        pass


CHANGES = {
    "gone": (lambda file: file.unlink(), "cannot be read (No such file or directory)"),
    "pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "cannot be read (it is a pipe)"),
    "longer": (lambda file: os.truncate(file, file.stat().st_size + 1),
               "cannot be read (it has changed since it was first opened)"),
}  # fmt: skip


@pytest.mark.parametrize("read", [map_tensor, open_slices])
@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_is_not_the_one_of_the_header(stored, name, read):
    change, what = CHANGES[name]
    info = stored["0.float32"]
    change(info.file)
    with refusal(WeightsError, where=f"{info.file}: tensor t", what=what):
        read(info, "t")


def test_a_file_that_becomes_shorter_at_the_last_moment(stored, monkeypatch):
    info = stored["0.float32"]
    monkeypatch.setattr(type(info), "open", lambda info: info.file.open("rb"))
    os.truncate(info.file, 100)
    with pytest.raises(WeightsError) as caught:
        map_tensor(info, "t")
    assert caught.value.where == f"{info.file}: tensor t"
    assert caught.value.what.startswith("cannot be mapped (")
