"""A checkpoint is read exactly with any dtype, sharding and key prefix; a fault is reported by name."""

import json
import os
from shutil import copyfile

import pytest
import torch
from helpers.messages import refusal
from safetensors.torch import load_file, save_file

from lastword.bench.checkpoint import make_checkpoint
from lastword.errors import InputError, WeightsError
from lastword.weights import Checkpoint, WeightsSource, read_config
from lastword.weights.files import shards
from lastword.weights.files.header import read_header
from lastword.weights.files.shards import weight_files
from lastword.weights.merging.stored import open_stored

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def open_checkpoint(folder) -> Checkpoint:
    return Checkpoint(folder, read_config(folder))


def read_stored(folder) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


ELEMENT_TYPES = [
    ({"prefix": prefix, "shards": shards, "attention_bias": bias, "dtype": dtype}, f"{prefix}{shards}-{name}-{bias}")
    for prefix in ("", "model.")
    for shards in (1, 3)
    for bias in (False, True)
    for name, dtype in (("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16))
]  # fmt: skip


@pytest.mark.parametrize("layout", [pytest.param(a, id=i) for a, i in ELEMENT_TYPES])
def test_every_tensor_comes_out_as_stored(tmp_path, layout):
    folder = make_checkpoint(tmp_path, **layout)
    ours, raw = open_checkpoint(folder), read_stored(folder)
    config, prefix = ours.config, layout["prefix"]

    def theirs(*names: str) -> torch.Tensor:
        return torch.cat([raw[prefix + name] for name in names])

    assert torch.equal(ours.embedding(), theirs("embed_tokens.weight"))
    assert torch.equal(ours.norm(), theirs("norm.weight"))
    for index in range(config.num_hidden_layers):
        at, layer = f"layers.{index}.self_attn.", ours.layer(index, layout["dtype"])
        mlp = f"layers.{index}.mlp."
        assert torch.equal(layer.qkv, theirs(*(f"{at}{x}_proj.weight" for x in "qkv")))
        assert torch.equal(layer.gate, theirs(f"{mlp}gate_proj.weight"))
        assert torch.equal(layer.up, theirs(f"{mlp}up_proj.weight"))
        assert torch.equal(layer.down, theirs(f"{mlp}down_proj.weight"))
        assert torch.equal(layer.o, theirs(f"{at}o_proj.weight"))
        assert torch.equal(layer.q_norm, theirs(f"{at}q_norm.weight"))
        assert torch.equal(layer.k_norm, theirs(f"{at}k_norm.weight"))
        assert torch.equal(layer.input_norm, theirs(f"layers.{index}.input_layernorm.weight"))
        post = theirs(f"layers.{index}.post_attention_layernorm.weight")
        assert torch.equal(layer.post_norm, post)
        if not layout["attention_bias"]:
            assert layer.qkv_bias is None
            assert layer.o_bias is None
            continue
        assert torch.equal(layer.qkv_bias, theirs(*(f"{at}{x}_proj.bias" for x in "qkv")))
        assert torch.equal(layer.o_bias, theirs(f"{at}o_proj.bias"))
    assert layer.qkv.dtype == layout["dtype"]
    assert len(ours.names()) == config.num_hidden_layers * (15 if config.attention_bias else 11) + 2
    assert ours.num_parameters == sum(tensor.numel() for tensor in raw.values())
    assert ours.num_bytes == sum(tensor.nbytes for tensor in raw.values())
    assert ours.dtypes == ({4: "F32", 2: ours.dtypes[0]}[layout["dtype"].itemsize],)


def test_a_layer_can_be_converted_while_it_is_read(tmp_path):
    checkpoint = open_checkpoint(
        make_checkpoint(tmp_path, dtype=torch.bfloat16, attention_bias=True)
    )
    plain, wide = (checkpoint.layer(1, dtype) for dtype in (torch.bfloat16, torch.float32))
    for name in plain.__slots__:
        assert getattr(wide, name).dtype == torch.float32
        assert torch.equal(getattr(wide, name), getattr(plain, name).float())


@pytest.mark.parametrize("index", [-1, 2, 99])
def test_layer_out_of_range(tmp_path, index):
    with pytest.raises(InputError) as caught:
        open_checkpoint(make_checkpoint(tmp_path)).layer(index, torch.float32)
    error = caught.value
    assert (error.where, error.what) == (f"{tmp_path}: layer", "out of range")
    assert (error.got, error.expected) == (str(index), "0 to 1")


def test_fingerprint_sees_weights_only(tmp_path):
    def print_of(name: str, **layout: object) -> str:
        return open_checkpoint(make_checkpoint(tmp_path / name, **layout)).fingerprint

    plain = print_of("a")
    assert len(plain) == 64
    assert plain == print_of("b", prefix="model.", tied=False) == print_of("c", shards=4)
    others = {
        print_of("d", seed=1),
        print_of("e", dtype=torch.bfloat16),
        print_of("f", attention_bias=True),
    }
    assert len(others | {plain}) == 4


@pytest.mark.parametrize("place", [0, 500, 999])
def test_fingerprint_sees_a_changed_weight(tmp_path, place):
    folder = make_checkpoint(tmp_path)
    before, raw = open_checkpoint(folder).fingerprint, read_stored(folder)
    tensor = raw["layers.1.mlp.down_proj.weight"].view(-1)
    tensor[place * (len(tensor) - 1) // 999] += 1
    save_file(raw, folder / SINGLE)
    assert open_checkpoint(folder).fingerprint != before


def test_fingerprint_is_read_once(tmp_path):
    folder = make_checkpoint(tmp_path)
    checkpoint = open_checkpoint(folder)
    before = checkpoint.fingerprint
    (folder / SINGLE).unlink()
    assert checkpoint.fingerprint == before


def test_a_checkpoint_is_a_source_of_weights(tmp_path):
    """The engine needs nothing else, so any object with these attributes can replace a checkpoint."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path))
    asked = [name for name in vars(WeightsSource) if not name.startswith("_")]
    assert sorted(asked) == [
        "dtypes", "embedding", "fingerprint", "layer", "norm", "num_bytes", "num_parameters",
    ]  # fmt: skip
    assert all(hasattr(checkpoint, name) for name in asked)


def test_a_model_to_rewrite_reads_each_header_once(tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path, shards=3, prefix="model.", tied=False)
    asked = []

    def counted(path):
        asked.append(path.name)
        return read_header(path)

    monkeypatch.setattr(shards, "read_header", counted)
    model = open_stored(str(folder))
    assert sorted(asked) == sorted(path.name for path in folder.glob("*.safetensors"))
    assert model.fingerprint == open_checkpoint(folder).fingerprint
    assert "lm_head.weight" in model.tensors


def test_lm_head_is_ignored_whatever_it_is(tmp_path):
    folder = make_checkpoint(tmp_path)
    save_file(
        read_stored(folder) | {"lm_head.weight": torch.zeros(3, dtype=torch.int8)}, folder / SINGLE
    )
    assert "lm_head.weight" not in open_checkpoint(folder).names()


def test_parts_of_different_dtypes_are_converted_each(tmp_path):
    folder = make_checkpoint(tmp_path)
    raw = read_stored(folder)
    name = "layers.0.self_attn.q_proj.weight"
    save_file(raw | {name: raw[name].bfloat16()}, folder / SINGLE)
    layer = open_checkpoint(folder).layer(0, torch.float32)
    assert layer.qkv.dtype == torch.float32
    assert torch.equal(layer.qkv[:128], raw[name].bfloat16().float())
    assert open_checkpoint(folder).dtypes == ("BF16", "F32")


def edit(change):
    """Create a case from a function that changes the dictionary of tensors."""

    def apply(folder):
        raw = read_stored(folder)
        change(raw)
        save_file(raw, folder / SINGLE)

    return apply


def index_of(change):
    """Create a case from a function that changes the shards' index."""

    def apply(folder):
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return apply


def rename(old, new):
    return edit(lambda raw: raw.update({new: raw.pop(old)}))


def truncate(name, size):
    def apply(folder):
        with (folder / name).open("r+b") as file:
            file.truncate(size if size >= 0 else (folder / name).stat().st_size + size)

    return apply


THIRD = "model-00003-of-00003.safetensors"
NORM = "norm.weight"
UP, BIAS = "layers.1.mlp.up_proj.weight", "layers.0.self_attn.q_proj.bias"
AT_UP, LISTED = f"/{SINGLE}: tensor {UP}", f'/{INDEX}: tensor "{UP}"'
FLOATS, PLAIN = "F32, BF16 or F16", "the name of a file in this folder"
EXTRA, AGAIN = "unexpected tensors (1)", "The download is incomplete: fetch the model again."
MANY = (
    "embed_tokens.weight, layers.0.input_layernorm.weight, layers.0.mlp.down_proj.weight, "
    "layers.0.mlp.gate_proj.weight, layers.0.mlp.up_proj.weight and "
)
# The damage, and the error's parts: where (below the folder), what, and if known got, expected, remedy.
BAD_SINGLE = {
    "missing": (edit(lambda raw: raw.pop(UP)), "", f"1 of 24 tensors missing: {UP}"),
    "many-missing": (edit(lambda raw: [raw.pop(k) for k in list(raw)[:9]]), "",
                     f"9 of 24 tensors missing: {MANY}4 more"),
    "extra": (edit(lambda raw: raw.update(x=torch.ones(1))), "", f"{EXTRA}: x"),
    "inv-freq": (edit(lambda raw: raw.update(inv_freq=torch.ones(1))), "", f"{EXTRA}: inv_freq"),
    "extra-layer": (edit(lambda raw: raw.update({"layers.2.x": torch.ones(1)})), "", f"{EXTRA}: layers.2.x"),
    "bias": (edit(lambda raw: raw.update({BIAS: torch.ones(128)})), "", f"{EXTRA}: {BIAS}"),
    "misspelt": (rename(UP, "layers.1.mlp.up_prog.weight"), "", f"1 of 24 tensors missing: {UP}"),
    "half-prefixed": (rename(UP, f"model.{UP}"), "", f"1 of 24 tensor names begin differently: model.{UP}",
                      None, "only names like embed_tokens.weight"),
    "half-unprefixed": (edit(lambda raw: [raw.update({f"model.{k}": raw.pop(k)}) for k in raw.keys() - {UP, NORM}]),
                        "", f"2 of 24 tensor names begin differently: {UP}, {NORM}",
                        None, "only names like model.embed_tokens.weight"),
    "both-prefixes": (edit(lambda raw: raw.update({f"model.{UP}": raw[UP].clone()})), "", f"{EXTRA}: model.{UP}"),
    "other-part": (edit(lambda raw: raw.update({"vision.norm.weight": torch.ones(1)})), "",
                   f"{EXTRA}: vision.norm.weight"),
    "shape": (edit(lambda raw: raw.update({UP: raw[UP][:5].clone()})), AT_UP, "wrong shape", "[5, 64]", "[128, 64]"),
    "transposed": (edit(lambda raw: raw.update({UP: raw[UP].T.contiguous()})), AT_UP, "wrong shape",
                   "[64, 128]", "[128, 64]"),
    "rank": (edit(lambda raw: raw.update({UP: raw[UP].reshape(-1)})), AT_UP, "wrong shape", "[8192]", "[128, 64]"),
    "dtype-f64": (edit(lambda raw: raw.update({UP: raw[UP].double()})), AT_UP, "wrong dtype", "F64", FLOATS),
    "dtype-fp8": (edit(lambda raw: raw.update({UP: raw[UP].to(torch.float8_e4m3fn)})), AT_UP, "wrong dtype",
                  "F8_E4M3", FLOATS),
    "dtype-int": (edit(lambda raw: raw.update({UP: raw[UP].to(torch.int8)})), AT_UP, "wrong dtype", "I8", FLOATS),
    "truncated": (truncate(SINGLE, -100), f"/{SINGLE}", "truncated", "528316 bytes", "528416", "Download it again."),
    "truncated-header": (truncate(SINGLE, 100), f"/{SINGLE}", "truncated", "100 bytes", "at least 2336 for the header",
                         "Download it again."),
    "empty": (truncate(SINGLE, 0), f"/{SINGLE}", "empty", None, None,
              "The download failed: fetch it again."),
    "no-weights": (lambda folder: (folder / SINGLE).unlink(), "", "no weights", None, f"{SINGLE} or {INDEX}"),
    "pickled": (lambda folder: (folder / SINGLE).rename(folder / "model.bin"), "", f"no {SINGLE}", "model.bin", None,
                "Save the model as model.safetensors."),
    "variant": (lambda folder: (folder / SINGLE).rename(folder / "model.fp16.safetensors"), "", f"no {SINGLE}",
                "model.fp16.safetensors", None, "Save the model as model.safetensors."),
    "stray-shard": (lambda folder: (folder / FIRST).write_bytes(b""), "", f"both {SINGLE} and shards: {FIRST}",
                    None, None, "Remove one set."),
    "stray-index": (lambda folder: (folder / INDEX).write_text('{"weight_map": {"x": "y.safetensors"}}'), "",
                    f"both {SINGLE} and {INDEX}", None, None, "Remove the one that does not belong to the model."),
}  # fmt: skip
BAD_SHARDED = {
    "shard-gone": (lambda folder: (folder / SECOND).unlink(), "", f"1 of 2 shards missing: {SECOND}",
                   None, None, AGAIN),
    "shard-truncated": (truncate(SECOND, -1), f"/{SECOND}", "truncated", "198791 bytes", "198792",
                        "Download it again."),
    "shard-swapped": (lambda folder: copyfile(folder / FIRST, folder / SECOND), f"/{SECOND}",
                      f"contains tensors that are also in {FIRST}: {MANY}7 more"),
    "index-gone": (lambda folder: (folder / INDEX).unlink(), "", f"shards without {INDEX}: {FIRST}, {SECOND}",
                   None, None, "Fetch the model again."),
    "extra-shard": (lambda folder: copyfile(folder / FIRST, folder / THIRD), f"/{INDEX}",
                    f"does not list existing shards: {THIRD}"),
    "unlisted": (index_of(lambda names: names.pop(UP)), f"/{INDEX}", f"does not list tensors of the shards: {UP}"),
    "phantom": (index_of(lambda names: names.update(ghost=FIRST)), f'/{INDEX}: tensor "ghost"',
                f"not in {FIRST}, nor in any shard"),
    "wrong-shard": (index_of(lambda names: names.update({UP: FIRST})), LISTED, f"listed in {FIRST}, found in {SECOND}"),
    "absent-shard": (index_of(lambda names: names.update({UP: "gone.safetensors"})), "",
                     "1 of 3 shards missing: gone.safetensors", None, None, AGAIN),
    "traversal": (index_of(lambda names: names.update({UP: "../x.safetensors"})), LISTED, "wrong place",
                  '"../x.safetensors"', PLAIN),
    "absolute": (index_of(lambda names: names.update({UP: "/etc/passwd"})), LISTED, "wrong place",
                 '"/etc/passwd"', PLAIN),
    "number": (index_of(lambda names: names.update({UP: 2})), LISTED, "wrong place", "2", PLAIN),
    "no-map": (lambda folder: (folder / INDEX).write_text("{}"), f"/{INDEX}: weight_map", "wrong value", "null",
               "an object of tensor names and file names"),
    "long-name": (index_of(lambda names: names.update({UP: "a" * 300 + ".safetensors"})),
                  f"/{'a' * 300}.safetensors", "cannot be read (File name too long)"),
    "newline": (index_of(lambda names: names.update({UP: FIRST + "\n"})), LISTED, "wrong place",
                f'"{FIRST}\\n"', PLAIN),
    "not-json": (lambda folder: (folder / INDEX).write_text("["), f"/{INDEX}",
                 "not valid JSON (column 2: a value is missing)"),
}  # fmt: skip
CASES = [pytest.param(1, *case[:2], case[2:], id=f"single-{n}") for n, case in BAD_SINGLE.items()]
CASES += [
    pytest.param(2, *case[:2], case[2:], id=f"sharded-{n}") for n, case in BAD_SHARDED.items()
]


@pytest.mark.parametrize(("shards", "damage", "place", "parts"), CASES)
def test_a_wrong_checkpoint_is_named(tmp_path, shards, damage, place, parts):
    folder = make_checkpoint(tmp_path, shards=shards)
    damage(folder)
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(folder)
    error = caught.value
    assert error.where == f"{folder}{place}"
    found = (error.what, error.got, error.expected, error.remedy)
    assert found == (*parts, None, None, None)[:4]
    assert "\n" not in str(error)


WRAPPED = "Save the model itself, not the wrapper."
MERGE = "Merge the adapter into the model (merge_and_unload) and save that."
ALL, SOME = "all tensor names", "1 of 24 tensor names"
LIKE = "names like model.embed_tokens.weight or embed_tokens.weight"
CONTAIN = "contain {}, which {} adds".format
COMPILED = CONTAIN("_orig_mod", "torch.compile")
# How a name is changed, whether all are, what is said of them, the shortest wrong name, and the remedy.
WRAPPERS = {
    "_orig_mod.{}": (ALL, COMPILED, f"_orig_mod.{NORM}", WRAPPED),
    "_orig_mod.model.{}": (ALL, COMPILED, f"_orig_mod.model.{NORM}", WRAPPED),
    "model._orig_mod.{}": (ALL, COMPILED, f"model._orig_mod.{NORM}", WRAPPED),
    "module.{}": (ALL, CONTAIN("module", "DataParallel or DistributedDataParallel"), f"module.{NORM}", WRAPPED),
    "_fsdp_wrapped_module.{}": (ALL, CONTAIN("_fsdp_wrapped_module", "FSDP"), f"_fsdp_wrapped_module.{NORM}", WRAPPED),
    "base_model.model.{}": (ALL, CONTAIN("base_model", "PEFT"), f"base_model.model.{NORM}", MERGE),
    "0.auto_model.{}": (ALL, CONTAIN("auto_model", "sentence-transformers"), f"0.auto_model.{NORM}",
                        "Save it with SentenceTransformer.save_pretrained."),
    "0.model.{}": (ALL, "begin with 0.model.", f"0.model.{NORM}", WRAPPED),
    "model.model.{}": (ALL, "begin with model.model.", f"model.model.{NORM}", WRAPPED),
    "x\ny.{}": (ALL, "begin with x\ny.", f"x\ny.{NORM}", WRAPPED),
    "only layers.0._orig_mod.mlp.up_proj.weight": (SOME, COMPILED, "layers.0._orig_mod.mlp.up_proj.weight", WRAPPED),
    "only base_model.model.layers.0.mlp.up_proj.lora_A.weight": (
        SOME, CONTAIN("base_model", "PEFT"), "base_model.model.layers.0.mlp.up_proj.lora_A.weight", MERGE),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_put_into_names_is_named(tmp_path, name):
    """transformers fills such a model with random weights, so it is refused although its values are right."""
    many, how, got, remedy = WRAPPERS[name]
    folder = make_checkpoint(tmp_path)
    raw = read_stored(folder)
    if name.startswith("only "):
        raw[name.removeprefix("only ")] = raw.pop("layers.0.mlp.up_proj.weight")
    else:
        raw = {name.format(key): tensor for key, tensor in raw.items()}
    save_file(raw, folder / SINGLE)
    what = f"{many} {how}"
    with refusal(WeightsError, where=str(folder), what=what, got=got, expected=LIKE, remedy=remedy):
        open_checkpoint(folder)


def write_index(folder, **changes):
    names = dict.fromkeys(read_stored(folder), SINGLE) | changes
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def test_an_index_may_name_the_one_file(tmp_path):
    folder = make_checkpoint(tmp_path)
    before = open_checkpoint(folder).fingerprint
    write_index(folder)
    assert open_checkpoint(folder).fingerprint == before
    assert weight_files(folder) == [folder / SINGLE]


CONTRADICTIONS = {
    "phantom": ({"ghost": SINGLE}, f'/{INDEX}: tensor "ghost"', f"not in {SINGLE}, nor in any shard"),
    "other-file": ({UP: "x.safetensors"}, "", f"both {SINGLE} and {INDEX}"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_an_index_that_contradicts_the_one_file(tmp_path, name):
    changes, place, what = CONTRADICTIONS[name]
    folder = make_checkpoint(tmp_path)
    write_index(folder, **changes)
    with refusal(WeightsError, where=f"{folder}{place}", what=what):
        open_checkpoint(folder)


def replace(folder):
    """Another model is saved to the same place."""
    save_file({name: tensor + 1 for name, tensor in read_stored(folder).items()}, folder / "new")
    os.utime(folder / "new", ns=(0, 0))  # a clock may be too coarse to tell two writes apart
    (folder / "new").rename(folder / SINGLE)


def write_over(folder):
    raw = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(raw[:-1] + b"x")
    os.utime(folder / SINGLE, ns=(0, 0))


@pytest.mark.parametrize("change", [truncate(SINGLE, -4000), replace, write_over])
def test_weights_that_change_while_the_model_is_opened(tmp_path, change):
    """Neither a mixture of two models nor the fingerprint of other weights is ever returned."""
    folder = make_checkpoint(tmp_path)
    checkpoint = open_checkpoint(folder)
    checkpoint.layer(0, torch.float32)
    change(folder)
    what = "cannot be read (it has changed since it was first opened)"
    with refusal(WeightsError, where=str(folder / SINGLE), what=what):
        _ = checkpoint.fingerprint
    name = "layers.1.input_layernorm.weight"
    with refusal(WeightsError, where=f"{folder / SINGLE}: tensor {name}", what=what):
        checkpoint.layer(1, torch.float32)


@pytest.mark.parametrize("extra", range(1, 9))
def test_tensors_need_not_be_aligned(tmp_path, extra):
    """The format lets the header have any length, so a tensor may begin at any byte."""
    folder = make_checkpoint(tmp_path)
    before = open_checkpoint(folder)
    layer, fingerprint = before.layer(1, torch.float64), before.fingerprint
    raw = (folder / SINGLE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    longer = (length + extra).to_bytes(8, "little") + raw[8 : 8 + length].ljust(length + extra)
    (folder / SINGLE).write_bytes(longer + raw[8 + length :])
    after = open_checkpoint(folder)
    assert after.fingerprint == fingerprint
    assert torch.equal(after.layer(1, torch.float64).down, layer.down)
    rows = torch.tensor([3, 1, 2])
    stored = load_file(folder / SINGLE)["embed_tokens.weight"]
    assert torch.equal(after.embedding()[rows], stored[rows])


@pytest.mark.parametrize("bias", [False, True])
def test_config_that_disagrees_with_the_weights(tmp_path, bias):
    folder = make_checkpoint(tmp_path, attention_bias=bias)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_bias": not bias}))
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(folder)
    assert caught.value.where == str(folder)
    assert "layers.0.self_attn.o_proj.bias" in caught.value.what
