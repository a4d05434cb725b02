"""`lastword bench bulk`: time corpus jobs in processes of their own. See `bench/README.md`, "Corpus jobs"."""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lastword import Embedder
from lastword.bench.bulk.fleet import fleet
from lastword.bench.machine import busy_notice, describe_run, json_lines
from lastword.bench.memory import held_bytes
from lastword.errors import ConfigError

_ROWS, _ROWS_WITH_MODEL = 2000, 400
_COMPARED, _TOLERANCE = 20, 1e-3  # number of texts compared, largest difference allowed
_WORDS = 75  # about 100 tokens
_UNITS = 20  # of a job, about
_MEMORY_STEPS = (1, 10)  # tenths of the rows, for the scenario memory


@dataclass(slots=True)
class Setting:
    """What all scenarios use: the options, a scratch folder, the number of texts, and the rounds."""

    args: argparse.Namespace
    folder: Path
    rows: int
    rounds: int

    @property
    def model(self) -> str:
        """The model's folder; "" for the built-in model."""
        return "" if self.args.model is None else str(self.args.model)

    def texts(self, rows: int, seed: int) -> Path:
        """Write `rows` distinct texts as JSON lines, and return the file."""
        path = self.folder / f"texts-{rows}-{seed}.jsonl"
        if not path.exists():
            draw = random.Random(seed)  # noqa: S311  no secrets
            words = [
                "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 7)))
                for _ in range(3000)
            ]
            with path.open("w") as file:
                for number in range(rows):
                    text = " ".join(
                        draw.choices(words, k=draw.randint(_WORDS // 2, 3 * _WORDS // 2))
                    )
                    file.write(json.dumps({"id": number, "text": text}) + "\n")
        return path

    def run(self, way: str, path: Path, out: Path, threads: int) -> dict[str, Any]:
        """Embed a file in a process of its own, by a job or in one of `child.WAYS`; return the figures."""
        if way == "job":
            return Process(self, path, out, threads).wait()
        command = [
            sys.executable,
            "-m",
            "lastword.bench.bulk.child",
            way,
            path,
            out,
            self.model,
            threads,
        ]
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            env=_environment(threads),
            check=False,
        )
        if done.returncode:
            last = " / ".join(done.stderr.splitlines()[-3:])
            raise ConfigError("lastword bench bulk", f"{way} failed", got=last)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def new_folder(self) -> Path:
        """Delete the previous output, if there is one, and return the path for the next."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
        shutil.rmtree(f"{out}.cache", ignore_errors=True)
        return out


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


class Process:
    """A process that runs a corpus job."""

    def __init__(self, setting: Setting, path: Path, out: Path, threads: int, *more: str) -> None:
        rows = path.read_bytes().count(b"\n")
        program = "import sys; from lastword.cli.entry import main; sys.exit(main())"
        options = ["embed", path, "-o", f"{out}/", "--json", "--quiet", "--device", "cpu"]
        options += ["--unit-records", max(20, rows // _UNITS)]
        options += [*more, *(["--model", setting.model] if setting.model else [])]
        self._began, self._errors = perf_counter(), tempfile.TemporaryFile()  # noqa: SIM115  closed in `wait`
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, options)], stdout=subprocess.PIPE, stderr=self._errors,
            text=True, env=_environment(threads),
        )  # fmt: skip

    def wait(self) -> dict[str, Any]:
        """Wait for the job; return its rows, its times in seconds, and its peak memory.

        "seconds" is the sum of its units' times, "wall" the time of the whole process, and "per_unit" the time from the
        end of the first unit to the end of the last, divided by the units in between.

        Raises:
            ConfigError: the job failed; the error has the last lines of its stderr.
        """
        process, seconds, peak, rows = self._process, 0.0, 0, 0
        ends = []
        assert process.stdout is not None
        try:
            for line in process.stdout:
                unit = json.loads(line)
                seconds, rows = seconds + unit["seconds"], rows + unit["rows"]
                ends.append(perf_counter())
                peak = max(peak, held_bytes("VmHWM", process.pid))
            status = process.wait()
        finally:
            process.kill()
            process.stdout.close()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").splitlines()
            self._errors.close()
        if status:
            raise ConfigError("lastword bench bulk", "a job failed", got=" / ".join(lines[-3:]))
        wall = perf_counter() - self._began
        per_unit = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0
        return {
            "rows": rows, "seconds": seconds, "wall": wall, "per_unit": per_unit, "peak_bytes": peak
        }  # fmt: skip


def _compare(setting: Setting, ways: Sequence[str]) -> None:
    """Check that all ways give the vectors of `encode`.

    Raises:
        ConfigError: one does not.
    """
    from pyarrow import parquet

    path = setting.texts(_COMPARED, -1)
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    with Embedder(setting.model or None, device="cpu", show_progress_bar=False) as embedder:
        expected = embedder.encode(texts, prompt="")
    for way in ways:
        if way == "encode":
            continue
        out = setting.new_folder()
        if way == "vllm":
            _vllm(setting, path)
            lines = (setting.folder / "results.jsonl").read_text().splitlines()
            found = {
                int(each["custom_id"]): each["response"]["body"]["data"][0]["embedding"]
                for each in map(json.loads, lines)
            }
        else:
            setting.run(way, path, out, torch.get_num_threads())
            table = parquet.read_table(out)
            found = dict(zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
        vectors = torch.tensor([found.get(n, [0.0] * expected.shape[1]) for n in range(len(texts))])
        error = float((vectors - expected).abs().max())
        if error > _TOLERANCE:
            expected_error = f"at most {_TOLERANCE:g}"
            raise ConfigError(
                way, "other vectors than encode", got=f"{error:.2g}", expected=expected_error
            )


def encode(setting: Setting) -> Iterator[dict[str, Any]]:
    """Time `encode`, a job and the other libraries in alternation, on new texts in every round."""
    threads = torch.get_num_threads()
    ways = ["encode", "job", *dict.fromkeys(setting.args.beside)]
    _compare(setting, ways)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(setting.rounds):
        path = setting.texts(setting.rows, number)
        for way in ways if number % 2 == 0 else ways[::-1]:
            if way == "vllm":
                taken[way].append(_vllm(setting, path))
                continue
            found = setting.run(way, path, setting.new_folder(), threads)
            if found["rows"] != setting.rows:
                raise ConfigError(
                    way, "left rows out", got=str(found["rows"]), expected=str(setting.rows)
                )
            taken[way].append(found["seconds"])
    for way, seconds in taken.items():
        median = statistics.median(seconds)
        ratio = statistics.median(a / b for a, b in zip(seconds, taken["job"], strict=True))
        yield {
            "scenario": "encode", "way": way, "rows": setting.rows, "seconds": median,
            "rows_per_second": setting.rows / median, "job_is_faster": ratio,
            "line": f"{way:<10} {setting.rows / median:10,.1f} texts/s   takes {ratio:.2f} times as long as a job",
        }  # fmt: skip


def _vllm(setting: Setting, path: Path) -> float:
    """Return the seconds of vLLM's run-batch, less its seconds for one text, which are mostly its start."""
    seconds = []
    lines = path.read_text().splitlines()
    for part in (lines[:1], lines):
        requests, results = setting.folder / "requests.jsonl", setting.folder / "results.jsonl"
        bodies = ({"model": "m", "input": json.loads(line)["text"]} for line in part)
        requests.write_text(
            "".join(
                json.dumps(
                    {"custom_id": str(n), "method": "POST", "url": "/v1/embeddings", "body": body}
                )
                + "\n"
                for n, body in enumerate(bodies)
            )
        )
        options = [
            "-i",
            requests,
            "-o",
            results,
            "--model",
            setting.model,
            "--served-model-name",
            "m",
        ]
        options += ["--runner", "pooling", "--dtype", "float32", "--max-model-len", "2048"]
        command = [setting.args.python, "-m", "vllm.entrypoints.openai.run_batch", *options]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
        began = perf_counter()
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=environment, check=False
        )
        seconds.append(perf_counter() - began)
        good = (
            sum(
                '"error":null' in line.replace(" ", "") for line in results.read_text().splitlines()
            )
            if results.exists()
            else 0
        )
        if done.returncode or good != len(part):
            last = " / ".join(done.stderr.splitlines()[-3:])
            raise ConfigError("vLLM's run-batch", "failed", got=f"{good} good answers; {last}")
    return seconds[1] - seconds[0]


def workers(setting: Setting) -> Iterator[dict[str, Any]]:
    """Compare one worker with one thread, two such workers that share a job, and one worker with two threads."""
    cases = {
        "1 worker, 1 thread": (1, 1),
        "2 workers, 1 thread each": (2, 1),
        "1 worker, 2 threads": (1, 2),
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(setting.rounds):
        path = setting.texts(setting.rows, number)
        for name, (count, threads) in cases.items():
            out = setting.new_folder()
            started = [Process(setting, path, out, threads) for _ in range(count)]
            taken[name].append(max(each.wait()["seconds"] for each in started))
    base = taken["1 worker, 1 thread"]
    for name, seconds in taken.items():
        ratio = statistics.median(a / b for a, b in zip(base, seconds, strict=True))
        median = statistics.median(seconds)
        yield {
            "scenario": "workers", "case": name, "seconds": median, "speedup": ratio,
            "line": f"{name:<26} {setting.rows / median:10,.1f} texts/s   {ratio:.2f} times the first",
        }  # fmt: skip


def resume(setting: Setting) -> Iterator[dict[str, Any]]:
    """Time a whole job, the second half of one, and one with nothing left to do: whole processes, with their start."""
    threads = torch.get_num_threads()
    taken: dict[str, list[float]] = {"whole": [], "half": [], "nothing": []}
    for number in range(setting.rounds):
        path, out = setting.texts(setting.rows, number), setting.new_folder()
        taken["whole"].append(setting.run("job", path, out, threads)["wall"])
        done = sorted((out / "_done").iterdir())
        for record in done[len(done) // 2 :]:
            record.unlink()
        taken["half"].append(setting.run("job", path, out, threads)["wall"])
        taken["nothing"].append(setting.run("job", path, out, threads)["wall"])
    whole = statistics.median(taken["whole"])
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        yield {
            "scenario": "resume", "case": name, "seconds": median,
            "line": f"{name:<10} {median:8.2f} s   {100 * median / whole:5.1f} % of the whole job",
        }  # fmt: skip


def ray(setting: Setting) -> Iterator[dict[str, Any]]:
    """Compare a job with one on a Ray cluster of this machine, with one worker of as many threads: seconds per unit."""
    threads = torch.get_num_threads()
    ways: dict[str, tuple[str, ...]] = {
        "local": (),
        "ray": ("--ray", "local", "--cores-per-model", str(threads)),
    }
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(setting.rounds):
        path = setting.texts(setting.rows, number)
        for way in ways if number % 2 == 0 else [*ways][::-1]:
            out = setting.new_folder()
            taken[way].append(Process(setting, path, out, threads, *ways[way]).wait())
    for way, found in taken.items():
        per_unit, wall = (
            statistics.median(each[key] for each in found) for key in ("per_unit", "wall")
        )
        yield {
            "scenario": "ray", "way": way, "seconds_per_unit": per_unit, "wall": wall,
            "line": f"{way:<10} {per_unit:8.3f} s per unit   {wall:8.2f} s in all, with start and planning",
        }  # fmt: skip


def memory(setting: Setting) -> Iterator[dict[str, Any]]:
    """Measure a job's peak memory for a tenth of the texts, all of them, and ten times (--model: twice) as many."""
    for tenths in (*_MEMORY_STEPS, 100 if setting.args.model is None else 20):
        rows = max(1, setting.rows * tenths // 10)
        found = setting.run(
            "job", setting.texts(rows, 0), setting.new_folder(), torch.get_num_threads()
        )
        yield {
            "scenario": "memory", "rows": rows, "peak_bytes": found["peak_bytes"],
            "line": f"{rows:>10,} texts   peak {found['peak_bytes'] / 1e6:8,.0f} MB",
        }  # fmt: skip


SCENARIOS: Mapping[str, Callable[[Setting], Iterator[dict[str, Any]]]] = {
    "encode": encode,
    "workers": workers,
    "resume": resume,
    "ray": ray,
    "memory": memory,
    "fleet": lambda _: fleet(),
}


def run(args: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Run the scenarios; `show` prints a line.

    Raises:
        ConfigError: the options do not fit, or a process failed.
    """
    _check(args)
    rows: int = args.rows or (_ROWS if args.model is None else _ROWS_WITH_MODEL)
    with ExitStack() as opened:
        write = opened.enter_context(json_lines(args.json))
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lastword-bulk-")))
        about = describe_run(torch.device("cpu"), torch.float32)
        busy = busy_notice(about)
        if busy is not None:
            show(busy)
        setting = Setting(
            args,
            folder,
            max(1, rows // 10) if args.quick else rows,
            1 if args.quick else args.rounds,
        )
        for name in args.scenarios:
            show(f"{name}:")
            for result in SCENARIOS[name](setting):
                show(f"  {result.pop('line')}")
                write(about | result)
    return 0


def _check(args: argparse.Namespace) -> None:
    beside: Sequence[str] = args.beside
    if beside and args.model is None:
        remedy = "Make one with python -m lastword.bench.checkpoint."
        raise ConfigError(
            "--beside", "needs a checkpoint folder", expected="--model FOLDER", remedy=remedy
        )
    if ("vllm" in beside) != (args.python is not None):
        raise ConfigError(
            "--python", "goes with --beside vllm", got="one of them", expected="both or neither"
        )
