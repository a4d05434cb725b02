"""The safetensors writer: the safetensors library can read its files; it works atomically and without NumPy."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lastword.errors import InputError
from lastword.weights import write_safetensors
from lastword.weights.files.dtypes import ELEMENT_SIZES, torch_dtype
from lastword.weights.files.header import read_header
from lastword.weights.files.writer import TensorSpec, stream_safetensors

DTYPES = [torch_dtype(stored) for stored in ELEMENT_SIZES]


def example(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 3).to(dtype)


def test_the_library_reads_every_dtype_back(tmp_path):
    tensors = {f"{i}.{dtype}": example(dtype, 3, 5) for i, dtype in enumerate(DTYPES)}
    write_safetensors(tmp_path / "m.safetensors", tensors, {"made by": "lastword – ü"})
    theirs = load_file(tmp_path / "m.safetensors")
    assert theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(theirs[name].view(torch.uint8), tensor.view(torch.uint8))
    with safe_open(tmp_path / "m.safetensors", framework="pt") as handle:
        assert handle.metadata() == {"made by": "lastword – ü"}
    assert read_header(tmp_path / "m.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 4),
        torch.tensor(3.5),
        torch.arange(12.0).view(3, 4).T,
        torch.arange(12.0).view(3, 4)[:, 1::2],
        torch.ones(1, 4).expand(5, 4),
        torch.nn.Parameter(torch.ones(2)),
        torch.full((3,), float("nan")),
    ],
    ids=["empty", "scalar", "transposed", "strided", "expanded", "parameter", "nan"],
)
def test_any_strides(tmp_path, tensor):
    write_safetensors(tmp_path / "m.safetensors", {"t": tensor})
    read = load_file(tmp_path / "m.safetensors")["t"]
    assert torch.equal(read, tensor) or tensor.isnan().all()
    assert read.shape == tensor.shape


def test_no_tensors_and_odd_names(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {})
    assert load_file(tmp_path / "m.safetensors") == {}
    write_safetensors(tmp_path / "m.safetensors", {'a "b" ü\n': torch.ones(1)})
    assert list(load_file(tmp_path / "m.safetensors")) == ['a "b" ü\n']


def test_tensors_are_aligned_and_the_file_is_the_same_for_any_order(tmp_path):
    tensors = {"c": example(torch.uint8, 3), "b": example(torch.float64, 2), "a": torch.ones(3)}
    write_safetensors(tmp_path / "1", tensors)
    write_safetensors(tmp_path / "2", dict(reversed(tensors.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    for name, info in read_header(tmp_path / "1").items():
        assert info.start % tensors[name].itemsize == 0


def test_tensors_are_made_one_at_a_time(tmp_path):
    alive: list[str] = []

    def read(name: str) -> torch.Tensor:
        alive.append(name)
        return torch.full((4,), float(len(alive)))

    specs = dict.fromkeys("ba", TensorSpec(torch.float32, (4,)))
    stream_safetensors(tmp_path / "m.safetensors", specs, read)
    assert alive == ["a", "b"]
    assert load_file(tmp_path / "m.safetensors")["b"].tolist() == [2.0] * 4


def test_larger_than_one_write(tmp_path, monkeypatch):
    monkeypatch.setattr("lastword.weights.files.writer._CHUNK", 1000)
    tensor = example(torch.float32, 100, 33)
    write_safetensors(tmp_path / "m.safetensors", {"t": tensor})
    assert torch.equal(load_file(tmp_path / "m.safetensors")["t"], tensor)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_the_disk_begins_while_a_file_is_written(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *_: sizes.append(os.fstat(fd).st_size))
    monkeypatch.setattr("lastword.weights.files.writer._CHUNK", 1000)
    specs = {"t": TensorSpec(torch.float32, (1000,))}
    pieces = torch.arange(1000.0).split(50)
    stream_safetensors(tmp_path / "m.safetensors", specs, lambda _: iter(pieces))
    assert len(sizes) == 4  # one per 1000 bytes, the last at 4000 or more
    assert all(size // 1000 == i for i, size in enumerate(sizes, 1)), sizes


def test_a_system_without_advice_writes_too(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    test_larger_than_one_write(tmp_path, monkeypatch)


OLD = b"the old file"


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(OLD)
    return path


def left_alone(path) -> bool:
    return path.read_bytes() == OLD and os.listdir(path.parent) == [path.name]


def unlike(error, path, got, expected) -> None:
    assert error.where == f"{path}: tensor t"
    assert error.what == "does not match its spec"
    assert (error.got, error.expected) == (got, expected)


def test_unknown_dtype_leaves_the_old_file(old):
    with pytest.raises(InputError) as caught:
        write_safetensors(old, {"t": torch.ones(1, dtype=torch.complex128)})
    assert caught.value.where == f"{old}: tensor t"
    assert caught.value.what == "dtype complex128 has no safetensors name"
    assert left_alone(old)


@pytest.mark.parametrize(
    ("made", "got"),
    [(torch.ones(3), "float32 [3]"), (torch.ones(2).half(), "float16 [2]")],
    ids=["shape", "dtype"],
)
def test_a_tensor_unlike_its_announcement_leaves_the_old_file(old, made, got):
    with pytest.raises(InputError) as caught:
        stream_safetensors(old, {"t": TensorSpec(torch.float32, (2,))}, lambda _: made)
    unlike(caught.value, old, got, "float32 [2]")
    assert left_alone(old)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("no"), MemoryError])
def test_an_interrupted_write_leaves_the_old_file(old, error):
    def read(name: str) -> torch.Tensor:
        if name == "b":
            raise error
        return torch.ones(2)

    specs = dict.fromkeys("ab", TensorSpec(torch.float32, (2,)))
    with pytest.raises(error if isinstance(error, type) else type(error)):
        stream_safetensors(old, specs, read)
    assert left_alone(old)


def test_a_full_disk_leaves_the_old_file(old, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as caught:
        write_safetensors(old, {"t": torch.ones(1)})
    assert caught.value.where == str(old)
    assert caught.value.what == "cannot be written (No space left on device)"
    assert left_alone(old)


@pytest.mark.parametrize("pieces", [1, 2, 9])
def test_a_write_that_fails_behind_the_work_is_not_lost(old, monkeypatch, pieces):
    """The system reports only once that a page could not be written, here to a sync during the writing."""
    monkeypatch.setattr("lastword.weights.files.writer._CHUNK", 400)
    failures = [OSError(5, "Input/output error")]
    real = os.fsync

    def once(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", once)
    specs = {"t": TensorSpec(torch.float32, (100 * pieces,))}
    with pytest.raises(InputError) as caught:
        stream_safetensors(old, specs, lambda _: iter([torch.ones(100)] * pieces))
    assert caught.value.what == "cannot be written (Input/output error)"
    assert left_alone(old)


@pytest.mark.parametrize(
    ("pieces", "got"),
    [
        ([torch.ones(2)], "float32 2 elements"),
        ([torch.ones(2), torch.ones(2)], "float32 4 elements"),
        ([torch.ones(3).half()], "float16 3 elements"),
        ([], "float32 0 elements"),
    ],
    ids=["too-few", "too-many", "dtype", "none"],
)
def test_pieces_unlike_their_announcement_leave_the_old_file(old, pieces, got):
    with pytest.raises(InputError) as caught:
        stream_safetensors(old, {"t": TensorSpec(torch.float32, (3,))}, lambda _: iter(pieces))
    unlike(caught.value, old, got, "float32 [3]")
    assert left_alone(old)


def test_pieces_of_any_shape(tmp_path):
    tensor = example(torch.float32, 6, 4)
    pieces = [tensor[0], tensor[1:3], tensor[3:].T.contiguous().T, torch.empty(0)]
    specs = {"t": TensorSpec(torch.float32, (6, 4))}
    stream_safetensors(tmp_path / "m", specs, lambda _: iter(pieces))
    assert torch.equal(load_file(tmp_path / "m")["t"], tensor)


@pytest.mark.parametrize(
    ("folder", "what"), [("gone", "no such folder"), ("file", "is not a folder")]
)
def test_unwritable_place(tmp_path, folder, what):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        write_safetensors(tmp_path / folder / "m.safetensors", {"t": torch.ones(1)})
    assert (caught.value.where, caught.value.what) == (str(tmp_path / folder), what)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(InputError) as caught:
        write_safetensors(tmp_path / "m", {"t": torch.ones(1)})
    assert (caught.value.where, caught.value.what) == (str(tmp_path / "m"), "cannot be written")
    assert os.listdir(tmp_path) == ["m"]


WITHOUT_NUMPY = """
import sys, warnings
sys.modules["numpy"] = None  # any import of it fails from here on
warnings.filterwarnings("ignore", "Failed to initialize NumPy")
import torch
from lastword.bench.checkpoint import make_checkpoint
from lastword.weights import Checkpoint, read_config, read_embedding_spec, locate

folder = make_checkpoint(sys.argv[1], dtype=torch.bfloat16, shards=2)
config = read_config(locate(str(folder)).folder)
read_embedding_spec(folder, config)
checkpoint = Checkpoint(folder, config)
total = float(checkpoint.embedding().float().sum() + checkpoint.layer(1, torch.float32).qkv.sum())
assert total == total
print(checkpoint.fingerprint, "huggingface_hub" in sys.modules, "transformers" in sys.modules)
"""


def test_everything_works_without_numpy(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_NUMPY, str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[1:] == ["False", "False"]  # a local folder needs no hub client


def test_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_safetensors(tmp_path / "m.safetensors", {"t": torch.ones(3)})
