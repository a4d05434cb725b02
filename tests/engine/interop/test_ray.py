"""Ray Data's batches: the vectors of `encode` beside the other columns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lastword import Embedder, InputError
from lastword.interop.ray import EmbedBatch

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")

TEXTS = ["The ferry leaves at noon.", "", "Bread needs flour.", "The ferry leaves at noon."]


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


def test_columns(embedder: Embedder) -> None:
    batch = {"text": np.array(TEXTS, dtype=object), "n": np.arange(4)}
    found = EmbedBatch(embedder)(batch)
    assert list(found) == ["text", "n", "embedding"]
    assert found["n"] is batch["n"]
    assert isinstance(found["embedding"], np.ndarray)
    assert torch.equal(torch.from_numpy(found["embedding"]), embedder.encode(TEXTS))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary", "ubinary"])
def test_arrow(precision: str, embedder: Embedder) -> None:
    table = pa.table({"n": range(4), "body": TEXTS})
    adapter = EmbedBatch(
        embedder, text_field="body", vector_field="v", prompt="Q: ", precision=precision
    )
    found = adapter(table)
    assert found.column_names == ["n", "body", "v"]
    expected = embedder.encode(TEXTS, prompt="Q: ", precision=precision)
    assert pa.types.is_fixed_size_list(found.schema.field("v").type)
    assert found.column("v").to_pylist() == expected.tolist()


def test_an_empty_batch(embedder: Embedder) -> None:
    assert EmbedBatch(embedder)({"text": np.array([], dtype=object)})["embedding"].shape == (0, 64)
    found = EmbedBatch(embedder)(pa.table({"text": pa.array([], pa.string())}))
    assert found.schema.field("embedding").type.list_size == 64


def test_options_open_a_model(tiny_checkpoint: Path) -> None:
    adapter = EmbedBatch(tiny_checkpoint, device="cpu", truncate_dim=16)
    assert adapter({"text": TEXTS})["embedding"].shape == (4, 16)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"body": TEXTS, "n": [1]}, "batch: has no column 'text'; got body, n. Name the column"),
        ({"text": TEXTS, "embedding": [1]}, "batch: already has a column 'embedding'. Choose"),
        ([TEXTS], "batch: is of another kind; got list, expected a dict of columns or an Arrow"),
        ({"text": ["fine", None]}, "text 1: "),
    ],
)
def test_refused(batch: object, message: str, embedder: Embedder) -> None:
    with pytest.raises(InputError) as caught:
        EmbedBatch(embedder)(batch)
    assert str(caught.value).startswith(message)


DATA = """
import ray, torch
from lastword import Embedder
from lastword.interop.ray import EmbedBatch
ray.init("local", num_cpus=1, log_to_driver=False, logging_level="error", object_store_memory=80 << 20)
ray.data.DataContext.get_current().enable_progress_bars = False
rows = [{"n": i, "text": f"text {i} " + "tin " * (i % 7)} for i in range(50)]
found = {}
for form in ("numpy", "pyarrow"):
    data = ray.data.from_items(rows).map_batches(
        EmbedBatch, fn_constructor_kwargs={"model": MODEL, "device": "cpu"},
        batch_format=form, batch_size=20, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=1),
    )
    found[form] = sorted(data.take_all(), key=lambda row: row["n"])
ray.shutdown()
expected = Embedder(MODEL, device="cpu").encode([row["text"] for row in rows])
for form, taken in found.items():
    assert [row["text"] for row in taken] == [row["text"] for row in rows]
    vectors = torch.tensor([list(row["embedding"]) for row in taken])
    print(form, (vectors - expected).abs().max().item() < 1e-6)
"""


@pytest.mark.timing  # a cluster that is slow to start is taken for a broken one
def test_ray_data(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code = f"MODEL = {str(tiny_checkpoint)!r}\n{DATA}"
    command = [sys.executable, "-c", code]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["numpy", "True", "pyarrow", "True"], done.stderr
