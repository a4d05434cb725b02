"""Random cases: a valid input with a mutation, given to an entry point, and what may come of it.

A case is known by the run's seed and its number. It may end in two ways: refused, by a LastwordError or by exit status
1 or 2 with one line on stderr; or accepted with a right result. Anything else is a finding.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz.mutations import mutate_bytes, mutate_json, mutate_safetensors, replace_by_another_kind
from fuzz.readers import Misbehaved, check_message
from fuzz.settings import change_settings

from lastword import Embedder
from lastword.bench.checkpoint import make_checkpoint
from lastword.cli import main as command_line
from lastword.errors import LastwordError

TEXTS = ["the cat sat", "the cat sat on the mat " * 9, "", "Zug № 5: 今天 €"]
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
EXTRA = {
    "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
    "special_tokens_map.json": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "generation_config.json": {
        "eos_token_id": 0,
        "temperature": 0.6,
        "transformers_version": "4.51.3",
    },
    "adapter_config.json": {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "a/b"},
    "added_tokens.json": {"<tool>": 300},
    "2_Normalize/config.json": {},
}
OPTIONAL = ("adapter_config.json", "added_tokens.json", "2_Normalize/config.json")
RECIPES = (
    {"models": [{"model": "A", "parameters": {"weight": 0.3}}, {"model": "B", "parameters": {"weight": 0.7}}],
     "merge_method": "multislerp", "dtype": "float32"},
    {"models": [{"model": "A"}, {"model": "B"}], "merge_method": "slerp", "base_model": "A", "parameters": {"t": 0.4}},
    {"models": [{"model": "B", "parameters": {"weight": 1}}], "merge_method": "task_arithmetic", "base_model": "A",
     "parameters": {"lambda": 0.5, "normalize": False}, "tokenizer_source": "base"},
    {"models": [{"model": "A", "parameters": {"weight": 1}}, {"model": "B", "parameters": {"weight": 1}}],
     "merge_method": "linear", "out_dtype": "bfloat16"},
)  # fmt: skip
INPUTS = {
    "jsonl": '{"text": "one", "n": [1, 2.50, null]}\r\n\n{"id": 7, "text": "\\u00e9 €", "o": {"a": true}}\n'.encode(),
    "csv": b'id,text\r\n1,"a ""b"" ,\r\nc"\r\n2,x\r\n',
    "tsv": b"text\tid\none\t1\ntwo words\t2\n",
    "txt": "one\n\ntwo € words\r\nthree".encode(),
}


@dataclass
class Case:
    """One case, with what its mutation was and what came of it."""

    number: int
    rng: Random
    folder: Path
    what: str = ""
    plausible: bool = False  # whether settings were changed to values that they may have
    accepted: bool = False
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)


class Seeds:
    """The valid inputs, and the vectors of the unmutated model."""

    def __init__(self, folder: Path) -> None:
        self.one = make_checkpoint(folder / "one", **SMALL)
        self.other = make_checkpoint(folder / "other", seed=1, **SMALL)
        self.sharded = make_checkpoint(folder / "sharded", shards=2, config_format="v5", **SMALL)
        for checkpoint in (self.one, self.sharded):
            for name, value in EXTRA.items():
                if name not in OPTIONAL:
                    (checkpoint / name).write_text(json.dumps(value))
        self.embedder = Embedder(self.one, device="cpu")
        self.vectors = _encode(self.embedder)
        self.ranges = folder / "ranges.safetensors"
        texts = folder / "texts.txt"
        texts.write_text("\n".join(f"text {i} of {i * 7}" for i in range(20)))
        arguments = [
            "--model",
            str(self.one),
            "-o",
            os.devnull,
            "--save-ranges",
            str(self.ranges),
            "--quiet",
        ]
        status, out, err = _call(["embed", str(texts), *arguments])
        assert (status, out, err) == (0, "", "")


def run(case: Case, seeds: Seeds) -> None:
    """Make the case's input and give it to an entry point.

    Raises:
        Misbehaved: it was neither refused properly nor accepted with a right result.
        Exception: whatever else an entry point let out.
    """
    kind = case.rng.choices((_checkpoint, _recipe, _records, _ranges), (12, 3, 4, 1))[0]
    kind(case, seeds)


def _checkpoint(case: Case, seeds: Seeds) -> None:
    rng = case.rng
    source = rng.choice((seeds.one, seeds.one, seeds.sharded))
    model = case.folder / "model"
    shutil.copytree(source, model, copy_function=os.link)
    if rng.random() < 0.4:
        case.what, case.plausible = change_settings(rng, model), True
        entry = rng.choices((_embed, _convert), (6, 1))[0]
        case.what += f" -> {entry.__name__[1:]}"
        entry(case, seeds, model)
        return
    names = sorted(str(path.relative_to(model)) for path in model.rglob("*") if path.is_file())
    name = rng.choice([*names, *names, *OPTIONAL])
    _mutate_file(case, model, name)
    entry = rng.choices((_embed, _info, _convert, _merge), (10, 2, 3, 2))[0]
    case.what += f" -> {entry.__name__[1:]}"
    entry(case, seeds, model)


def _mutate_file(case: Case, model: Path, name: str) -> None:
    """Change one file of a checkpoint, or add one that may stand there."""
    rng, path = case.rng, model / name
    path.parent.mkdir(exist_ok=True)
    data = path.read_bytes() if path.exists() else json.dumps(EXTRA[name]).encode()
    path.unlink(missing_ok=True)  # a link to the seed's own file
    chance = rng.random()
    if chance < 0.08:
        case.what = f"{name}: {replace_by_another_kind(rng, path)}"
        return
    if path.suffix == ".safetensors":
        path.write_bytes(mutate_safetensors(rng, data))
        case.what = f"{name}: safetensors"
    elif chance < 0.25:
        path.write_bytes(mutate_bytes(rng, data))
        case.what = f"{name}: bytes"
    else:
        path.write_bytes(mutate_json(rng, data))
        case.what = f"{name}: JSON"


def _embed(case: Case, seeds: Seeds, model: Path) -> None:
    try:
        case.vectors = _encode(Embedder(model, device="cpu"))
    except LastwordError as error:
        check_message(str(error))
        return
    case.accepted = True
    for name, matrix in case.vectors.items():
        if not bool(torch.isfinite(matrix).all()):
            raise Misbehaved(f"{name}: vectors that are not finite")
        norms = matrix.norm(dim=1)
        if bool((norms == 0).any()):
            raise Misbehaved(f"{name}: a vector of zeros")
        if "modules.json" not in case.what and bool(((norms - 1).abs() > 1e-4).any()):
            raise Misbehaved(f"{name}: vectors of length {norms.tolist()}")


def _encode(embedder: Embedder) -> dict[str, torch.Tensor]:
    found = {"text": embedder.encode(TEXTS), "query": embedder.encode_query(TEXTS)}
    return {name: matrix.clone() for name, matrix in found.items()}


def _info(case: Case, seeds: Seeds, model: Path) -> None:
    # A file of a terabyte, all of it a hole, takes as long to hash as another.
    full = ["--full"] if case.rng.random() < 0.5 and "sparse" not in case.what else []
    out = _command(case, ["info", str(model), "--json", *full])
    if out is not None:
        json.loads(out)


def _convert(case: Case, seeds: Seeds, model: Path) -> None:
    _check_copy(
        case, _command(case, ["convert", str(model), str(case.folder / "out"), "--quiet"]), model
    )


def _merge(case: Case, seeds: Seeds, model: Path) -> None:
    recipe = case.folder / "recipe.yaml"
    names = [str(model), str(seeds.other)]
    case.rng.shuffle(names)
    members = [{"model": name, "parameters": {"weight": 0.5}} for name in names]
    recipe.write_text(json.dumps({"models": members, "merge_method": "multislerp"}))
    _command(case, ["merge", str(recipe), str(case.folder / "out"), "--quiet"])
    _check_outside(case)


def _check_copy(case: Case, out: str | None, model: Path) -> None:
    """A model that was converted has the vectors of its source, or both are refused."""
    _check_outside(case)
    if out is None:
        return
    results: list[Any] = []
    for folder in (model, case.folder / "out"):
        try:
            results.append(_encode(Embedder(folder, device="cpu")))
        except LastwordError as error:
            check_message(str(error))
            results.append(None)
    ours, theirs = results
    if ours is not None and theirs is None:
        raise Misbehaved("the model converted from one that opens is refused")
    if ours is not None and any(not torch.equal(ours[name], theirs[name]) for name in ours):
        raise Misbehaved("the converted model has other vectors than its source")


def _check_outside(case: Case) -> None:
    """Nothing from outside the model's folder may be in the new one, nothing may be left beside it."""
    for path in (case.folder / "out").rglob("*"):
        if not path.is_dir() and (path.is_symlink() or not path.is_file()):
            raise Misbehaved(f"wrote {path.name}, which is no regular file")
    left = [path.name for path in case.folder.iterdir() if path.name.startswith(".")]
    if left:
        raise Misbehaved(f"left {left} behind")


def _recipe(case: Case, seeds: Seeds) -> None:
    rng, recipe = case.rng, case.folder / "recipe.yaml"
    text = json.dumps(rng.choice(RECIPES)).encode()
    chance = rng.random()
    case.what = "recipe: "
    if chance < 0.05:
        case.what += replace_by_another_kind(rng, recipe)
    elif chance < 0.35:
        case.what += "bytes"
        recipe.write_bytes(
            mutate_bytes(rng, _as_yaml(json.loads(text)) if rng.random() < 0.7 else text)
        )
    else:
        case.what += "JSON"
        recipe.write_bytes(mutate_json(rng, text))
    if recipe.is_file() and 0 < recipe.stat().st_size < 10**6:
        data = recipe.read_bytes()
        for name, model in ((b"A", bytes(seeds.one)), (b"B", bytes(seeds.other))):
            data = data.replace(b'"%s"' % name, b'"%s"' % model).replace(
                b" %s\n" % name, b" %s\n" % model
            )
        recipe.write_bytes(data)
    out = _command(case, ["merge", str(recipe), str(case.folder / "out"), "--quiet"])
    _check_outside(case)
    if out is not None:
        with suppress(LastwordError):  # weights of any size may overflow
            Embedder(case.folder / "out", device="cpu").encode(TEXTS)


def _as_yaml(value: dict[str, Any]) -> bytes:
    import yaml

    return bytes(yaml.safe_dump(value, sort_keys=False).encode())


def _records(case: Case, seeds: Seeds) -> None:
    rng = case.rng
    kind = rng.choice(sorted(INPUTS))
    path = case.folder / f"input.{kind}"
    case.what = f"input.{kind}"
    if rng.random() < 0.05:
        case.what += f": {replace_by_another_kind(rng, path)}"
        if path.is_fifo():
            return  # a pipe that nobody writes to is waited for, as by any command
    elif kind == "jsonl" and rng.random() < 0.6:
        lines = INPUTS[kind].splitlines()
        lines[0] = mutate_json(rng, lines[0]).replace(b"\n", b" ")
        path.write_bytes(b"\n".join(lines))
    else:
        path.write_bytes(mutate_bytes(rng, INPUTS[kind]))
    out = _command(case, ["embed", str(path), "--model", str(seeds.one), "--quiet"])
    if out is not None:
        _check_lines(out, seeds)


def _check_lines(out: str, seeds: Seeds) -> None:
    """Every line has the vector of its own text; one is checked against the model."""
    rows = [json.loads(line) for line in out.split("\n") if line]
    if not rows:
        return
    row = rows[len(rows) // 2]
    expected = seeds.embedder.encode([row["text"]], prompt="")[0]
    vector = torch.tensor(row["embedding"])
    if vector.shape != expected.shape or bool((vector - expected).abs().max() > 1e-5):
        raise Misbehaved(f"another vector than its text's: {row['text']!r}")


def _ranges(case: Case, seeds: Seeds) -> None:
    rng, path = case.rng, case.folder / "r.safetensors"
    case.what = "ranges"
    data = seeds.ranges.read_bytes()
    chance = rng.random()
    if chance < 0.1:
        case.what += f": {replace_by_another_kind(rng, path)}"
    else:
        path.write_bytes(mutate_bytes(rng, data) if chance < 0.3 else mutate_safetensors(rng, data))
    texts = case.folder / "texts.txt"
    texts.write_text("one\ntwo")
    precision = rng.choice(("int8", "uint8"))
    arguments = ["embed", str(texts), "--model", str(seeds.one), "--quiet"]
    out = _command(case, [*arguments, "--precision", precision, "--ranges", str(path)])
    low, high = (-128, 127) if precision == "int8" else (0, 255)
    for line in (out or "").splitlines():
        numbers = json.loads(line)["embedding"]
        if not all(low <= number <= high for number in numbers):
            raise Misbehaved(f"{precision} outside its range: {numbers}")


def _command(case: Case, arguments: list[str]) -> str | None:
    """Run the command line; return its output if it was successful, and check how it failed otherwise."""
    case.what += f" -> lastword {arguments[0]}"
    status, out, err = _call(arguments)
    if status not in (0, 1, 2):
        raise Misbehaved(f"exit status {status}")
    lines = err.split("\n")
    if status and (len(lines) != 2 or not err.startswith("lastword: ")):
        raise Misbehaved(f"exit status {status} and on stderr {err[:2000]!r}")
    for line in lines:
        check_message(line)
    if "out of memory" in err:
        raise Misbehaved(err)
    case.accepted = status == 0
    return out if status == 0 else None


def _call(arguments: list[str]) -> tuple[int, str, str]:
    with _captured() as (out, err):
        status = command_line.main(arguments)
    return status, out.getvalue().decode(), err.getvalue().decode()


@contextmanager
def _captured() -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    streams = io.BytesIO(), io.BytesIO()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(stream, "utf-8", write_through=True) for stream in streams
    )
    wrappers = sys.stdout, sys.stderr
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = before
        for wrapper in wrappers:
            wrapper.detach()
