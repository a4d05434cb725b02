"""An interrupted run-batch goes on where it stopped, with the same bytes; what does not fit is refused."""

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.fake_devices import ByBatch
from helpers.project import ROOT, examples, peak_anonymous

from lastword import Embedder
from lastword.batch_files import requests
from lastword.batch_files.requests import RequestGroup, RequestReader
from lastword.batch_files.results import ResultsFile, open_results
from lastword.cli import options
from lastword.cli.main import main
from lastword.errors import InputError
from lastword.runtime.runner import FutureWait

OPTIONS = ("-o", "out.jsonl", "--device", "cpu")
RUN = ("run-batch", "-i", "in.jsonl", *OPTIONS)
OUT, SETTINGS = Path("out.jsonl"), Path("out.jsonl.run.json")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
COMMAND = [
    sys.executable,
    "-c",
    """from lastword.batch_files import requests
from lastword.cli.entry import main
requests.GROUP_LINES = 8
raise SystemExit(main())""",
]


def line_of(number: int) -> str:
    texts = [f"{number} {'tin ' * (number % 7)}{each}" for each in range(1 + number % 3)]
    body: dict[str, object] = {"input": texts}
    if number % 5 == 0:
        body["encoding_format"] = "base64"
    if number % 11 == 0:
        body = {"input": []}
    line = {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": body}
    return "{" if number % 13 == 0 else json.dumps(line)


@pytest.fixture(autouse=True)
def batch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requests, "GROUP_LINES", 8)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f"{line_of(number)}\n" for number in range(60)))
    return path


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def by_batch(request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the vectors depend on the whole batch, so that a group that is cut in another way gives other bytes."""

    def load(_) -> Embedder:
        runner = ByBatch(256, ahead=request.param, depth=3 * request.param)
        return Embedder(device="cpu", runner=runner)

    monkeypatch.setattr(options, "open_embedder", load)


def run(*others: str, source: str = "in.jsonl") -> bytes:
    assert main(["run-batch", "-i", source, *OPTIONS, "--quiet", *others]) == 0
    return OUT.read_bytes()


def refused(capfd: pytest.CaptureFixture, *others: str, source: str = "in.jsonl") -> str:
    capfd.readouterr()
    assert main(["run-batch", "-i", source, *OPTIONS, "--quiet", *others]) == 2
    return capfd.readouterr().err


def test_cut_anywhere(by_batch: None) -> None:
    whole, draw = run(), random.Random(0)
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {0, 1, 15, len(whole) - 1, len(whole), *draw.sample(ends, 10)}
    cuts |= {draw.randrange(len(whole)) for _ in range(examples(10))}
    for cut in sorted(cuts):
        OUT.write_bytes(whole[:cut])
        assert run() == whole, cut


def test_the_groups_decide_the_bytes(by_batch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    for path in (OUT, SETTINGS):
        path.unlink()
    monkeypatch.setattr(requests, "GROUP_LINES", 9)
    assert run() != whole


def test_finished_lines_are_not_written_again(by_batch: None) -> None:
    first, *others = run().splitlines(keepends=True)
    _, second, *_ = others
    marked = second.replace(b'"truncated":false', b'"truncated":"mark"')
    assert marked != second
    OUT.write_bytes(b"".join([first, others[0], marked, others[2]]))
    assert run() == b"".join([first, others[0], marked, *others[2:]])


def test_killed_at_random_moments() -> None:
    def start() -> subprocess.Popen:
        return subprocess.Popen([*COMMAND, *RUN], env=ONE_THREAD, stderr=subprocess.DEVNULL)

    assert start().wait(60) == 0
    whole, draw, kills, partial = OUT.read_bytes(), random.Random(0), 0, set()
    OUT.unlink()
    SETTINGS.unlink()
    for _ in range(examples(4)):
        process = start()
        # Loading takes most of the time: wait for a number of lines before the kill.
        wanted = draw.randrange(0, len(whole))
        while process.poll() is None and (OUT.stat().st_size if OUT.exists() else -1) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait(60) == -signal.SIGKILL
        partial.add(OUT.stat().st_size)
        assert whole.startswith(OUT.read_bytes())
    assert kills >= 1
    assert start().wait(60) == 0
    assert OUT.read_bytes() == whole


def test_ctrl_c() -> None:
    whole = run()
    OUT.write_bytes(whole[:3000])
    process = subprocess.Popen([*COMMAND, *RUN], env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and OUT.stat().st_size <= 3000:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert process.returncode == 0 or "lastword: stopped\n" in err
    assert run() == whole


def test_a_run_that_is_complete(by_batch: None, capfd: pytest.CaptureFixture) -> None:
    whole = run()
    assert main([*RUN]) == 0
    assert OUT.read_bytes() == whole
    err = capfd.readouterr().err
    assert "60 requests answered by an earlier run" in err
    assert "60 requests, 10 with an error; the first: custom_id None: line 1: not valid" in err


@pytest.mark.parametrize("cut", [100, 5000, None])
@pytest.mark.parametrize(
    ("old", "new"),
    [("tin", "tan"), ('"1"', '"one"'), ("\n", "\n\n"), ("/v1/embeddings", "/v1/other")],
)
def test_a_changed_input(
    by_batch: None, capfd: pytest.CaptureFixture, batch_file: Path, cut: int, old: str, new: str
) -> None:
    whole = run()
    OUT.write_bytes(whole[:cut])
    batch_file.write_text(batch_file.read_text().replace(old, new, 1))
    assert "is not the answer to the request in its place" in refused(capfd)
    assert OUT.read_bytes() == whole[:cut]


def test_a_longer_or_shorter_input(
    by_batch: None, capfd: pytest.CaptureFixture, batch_file: Path
) -> None:
    lines = batch_file.read_text().splitlines(keepends=True)
    whole = run()
    batch_file.write_text("".join(lines[:56]))  # a whole number of groups
    assert "out.jsonl: has more lines than the input" in refused(capfd)
    batch_file.write_text("".join(lines[:50]))
    assert "out.jsonl:49: is not the answer" in refused(capfd)
    assert OUT.read_bytes() == whole
    batch_file.write_text("".join((*lines, line_of(61), "\n")))  # the last group is another
    assert "out.jsonl:57: is not the answer" in refused(capfd)
    OUT.write_bytes(b"".join(whole.splitlines(keepends=True)[:56]))
    assert run().startswith(OUT.read_bytes())
    assert OUT.read_bytes().count(b"\n") == 61


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (("--truncate",), "was begun with another --truncate; got True, expected False"),
        (("--accept-token-ids",), "another --accept-token-ids"),
        (("--max-inputs", "5"), "another --max-inputs; got 5, expected 2048"),
        (("--model-name", "x"), "another name of the model for /v1/embeddings; got x"),
        (("--max-batch-tokens", "77"), "another --max-batch-tokens for /v1/embeddings; got 77"),
        (("--max-length", "77"), "another --max-length"),
        (("--dim", "7"), "another fingerprint of the model"),
        (("--dtype", "bfloat16"), "another fingerprint of the model"),
    ],
)
def test_other_settings(
    capfd: pytest.CaptureFixture, others: tuple[str, ...], message: str
) -> None:
    whole = run()
    assert message in refused(capfd, *others)
    assert OUT.read_bytes() == whole


def test_another_model(capfd: pytest.CaptureFixture, tiny_checkpoint: Path) -> None:
    run()
    assert "another name of the model for" in refused(capfd, "--model", str(tiny_checkpoint))
    name = ("--model-name", "lastword-builtin-embedding")
    found = refused(capfd, "--model", str(tiny_checkpoint), *name)
    assert "out.jsonl: was begun with another " in found


def test_files_that_run_batch_did_not_write(by_batch: None, capfd: pytest.CaptureFixture) -> None:
    OUT.write_text("mine\n")
    assert "out.jsonl: exists already" in refused(capfd)
    OUT.unlink()
    run()
    OUT.write_text("mine\n")
    assert "out.jsonl:1: is not the answer" in refused(capfd)
    assert OUT.read_text() == "mine\n"
    SETTINGS.write_text('{"version": 0, "settings": {}}')
    assert "another version of lastword" in refused(capfd)


FOREIGN = ["mine\n", "{}\n", '{"version": 1}', '{"version": 1, "settings": 5}', "[1]", ""]


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("begun", [None, "", "line\n"], ids=["no file", "empty", "a line"])
def test_settings_that_run_batch_did_not_write(
    by_batch: None, capfd: pytest.CaptureFixture, foreign: str, begun: str | None
) -> None:
    SETTINGS.write_text(foreign)
    if begun is not None:
        OUT.write_text(begun)
    assert "out.jsonl.run.json: is not from run-batch, or is damaged" in refused(capfd)
    assert SETTINGS.read_text() == foreign
    assert (OUT.read_text() if OUT.exists() else None) == begun


def test_an_input_where_the_settings_go(
    by_batch: None, capfd: pytest.CaptureFixture, batch_file: Path
) -> None:
    lines = batch_file.read_text()
    batch_file.rename(SETTINGS)
    batch_file.write_text(lines)
    said = "out.jsonl.run.json: would be overwritten"
    assert said in refused(capfd, source=str(SETTINGS))
    assert said in refused(capfd, "--ranges", str(SETTINGS))
    assert SETTINGS.read_text() == lines


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:60] + b"\0" * 9 + line[60:],
        lambda line: line[:60] + b"\n",
        lambda line: line.replace(b'"error":{', b'"other":{'),
        lambda line: line.replace(b'"message"', b'"massage"'),
        lambda line: line[: line.index(b'"error"')] + b'"error":5}\n',
    ],
)
def test_a_damaged_line(by_batch: None, capfd: pytest.CaptureFixture, damage) -> None:
    first, *others = run().splitlines(keepends=True)
    assert b'"error":{' in first
    OUT.write_bytes(b"".join([damage(first), *others[:20]]))
    assert "out.jsonl:1: is damaged" in refused(capfd)


def test_two_processes(by_batch: None, capfd: pytest.CaptureFixture) -> None:
    from lastword.weights.files.atomic import lock

    whole = run()
    with OUT.open("rb") as other:
        lock(other.fileno())
        assert "is being written by another process" in refused(capfd)
    assert run() == whole


def test_another_run_ends_while_this_one_loads(
    by_batch: None, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = options.open_embedder

    def load_slowly(args) -> Embedder:
        monkeypatch.setattr(options, "open_embedder", load)
        OUT.write_bytes(run("--truncate")[:3000])
        return load(args)

    monkeypatch.setattr(options, "open_embedder", load_slowly)
    assert "was begun with another --truncate" in refused(capfd)
    assert OUT.stat().st_size == 3000
    with (
        pytest.raises(InputError, match="requests from a pipe cannot be read again"),
        open_results(str(OUT), None),
    ):
        pass


@pytest.mark.parametrize("lines", [4, 10, 16, 30])
def test_an_input_that_fails(
    by_batch: None,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    lines: int,
) -> None:
    whole, read = run(), RequestReader._read
    OUT.unlink()

    def fail(self: RequestReader, most: int) -> bytes:
        if self._line >= lines:
            raise InputError("in.jsonl", "cannot be read (it fails)")
        return read(self, most)

    with monkeypatch.context() as changed:
        changed.setattr(RequestReader, "_read", fail)
        assert "in.jsonl: cannot be read (it fails)" in refused(capfd)
    assert OUT.read_bytes() == b"".join(whole.splitlines(keepends=True)[: lines // 8 * 8])
    assert run() == whole


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("ahead", [True, False])
def test_a_device_that_fails(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *, ahead: bool, at_start: bool
) -> None:
    class Failing(ByBatch):
        left = 1000

        def start(self, task, forest):
            def fail():
                raise RuntimeError("CUDA error")

            self.left -= 1
            if self.left >= 0:
                return super().start(task, forest)
            return fail() if at_start else fail

    def load(_) -> Embedder:
        return Embedder(device="cpu", runner=Failing(256, ahead=ahead, depth=3 * ahead))

    monkeypatch.setattr(options, "open_embedder", load)
    whole = run()
    OUT.unlink()
    with monkeypatch.context() as changed:
        changed.setattr(Failing, "left", 3)
        found = refused(capfd)
    assert (
        "device fake: failed; got RuntimeError: CUDA error. Run the same command again to continue"
        in found
    )
    assert OUT.read_bytes() == b"".join(whole.splitlines(keepends=True)[:24])
    assert run() == whole


@pytest.mark.parametrize("line", ["{", json.dumps({"custom_id": "1"})])
def test_reading_ahead_is_bounded(
    batch_file: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    class Polled(ByBatch):
        def start(self, task, forest):
            return FutureWait(super().start(task, forest).__self__)

    runner, seen, read = Polled(256, seconds=0.5), [], list[RequestGroup]()
    monkeypatch.setattr(options, "open_embedder", lambda _: Embedder(device="cpu", runner=runner))
    groups, write = RequestReader.groups, ResultsFile.write

    def counted(self: RequestReader):
        for group in groups(self):
            read.append(group)
            yield group

    def written(self: ResultsFile, lines) -> None:
        seen.append(len(read))
        write(self, lines)

    monkeypatch.setattr(RequestReader, "groups", counted)
    monkeypatch.setattr(ResultsFile, "write", written)
    batch_file.write_text("".join([line_of(1), "\n", f"{line}\n" * 800]))
    assert run().count(b"\n") == 801
    assert len(seen) == 101
    # The groups that are read, besides two that are prepared.
    assert max(after - before for before, after in enumerate(seen)) <= 2 + runner.depth + 2


def test_a_full_disk(by_batch: None, capfd: pytest.CaptureFixture) -> None:
    import resource

    whole = run()
    OUT.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
    try:
        assert "out.jsonl: cannot be written (File too large)" in refused(capfd)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert OUT.stat().st_size == len(whole) // 2
    assert run() == whole


def test_pipes(capfd: pytest.CaptureFixture, batch_file: Path) -> None:
    whole = run()
    for path in (OUT, SETTINGS):
        path.unlink()
    arguments = [*COMMAND, "run-batch", "--quiet", "-i"]
    with batch_file.open("rb") as file:
        done = subprocess.run(
            [*arguments, "-", "-o", "-"], stdin=file, capture_output=True, timeout=120
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, whole, b"")
    with batch_file.open("rb") as file:
        done = subprocess.run(
            [*arguments, "-", "-o", "out.jsonl"], stdin=file, check=True, timeout=120
        )
    assert OUT.read_bytes() == whole
    assert not SETTINGS.exists()
    assert "Answers to requests from a pipe cannot be continued" in refused(capfd)
    OUT.unlink()
    run()
    with batch_file.open("rb") as file:
        command = [*arguments, "-", "-o", "out.jsonl"]
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=120)
    assert done.returncode == 2
    assert b"requests from a pipe cannot be read again" in done.stderr


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_no_requests(by_batch: None, batch_file: Path, text: str) -> None:
    batch_file.write_text(text)
    assert run() == run() == b""


def test_windows_lines(by_batch: None, batch_file: Path) -> None:
    whole = run()
    batch_file.write_text(
        "\ufeff" + batch_file.read_text().replace("\n", "\r\n").removesuffix("\r\n")
    )
    OUT.unlink()
    found = [json.loads(line) for line in run().splitlines()]
    expected = [json.loads(line) for line in whole.splitlines()]
    for each in (*found, *expected):
        del each["id"]
        (each["response"] or {}).pop("request_id", None)
    assert found == expected


def test_progress(by_batch: None, batch_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int | None, list[int]]] = []

    @contextmanager
    def bar(total, **_):
        seen.append((total, []))
        yield seen[-1][1].append

    monkeypatch.setattr("lastword.progress.progress_bar", bar)
    whole = run()
    OUT.write_bytes(whole[: len(whole) // 2])
    run()
    size = batch_file.stat().st_size
    assert [(total, sum(done)) for total, done in seen] == [(size, size)] * 2


def test_progress_is_counted_by_one_thread(by_batch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    @contextmanager
    def bar(*_, **__):
        yield lambda _: threads.add(threading.get_ident())

    monkeypatch.setattr("lastword.progress.progress_bar", bar)
    run()
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_packed_input(by_batch: None, batch_file: Path, packing: str) -> None:
    whole = run()
    OUT.unlink()
    data = batch_file.read_bytes()
    if packing == "zst":
        data = pytest.importorskip("pyarrow").compress(data, "zstd", asbytes=True)
    else:
        data = gzip.compress(data)
    Path(f"in.jsonl.{packing}").write_bytes(data)
    assert run(source=f"in.jsonl.{packing}") == whole
    OUT.write_bytes(whole[:3000])
    assert run(source=f"in.jsonl.{packing}") == whole


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in.jsonl.bz2", "in.jsonl.bz2: unsupported input format .bz2. Unpack it first."),
        ("in.zip", "in.zip: unsupported input format .zip. Unpack it first."),
        ("in.jsonl", "in.jsonl: is not JSON lines; got a gzip file."),
        ("packed.jsonl.gz", "packed.jsonl.gz: cannot be unpacked as gzip"),
    ],
)
def test_other_packed_input_is_refused(
    by_batch: None, capfd: pytest.CaptureFixture, batch_file: Path, name: str, message: str
) -> None:
    packed = gzip.compress(batch_file.read_bytes())
    Path(name).write_bytes(packed[:-20] if name == "packed.jsonl.gz" else packed)
    assert message in refused(capfd, source=name)


def test_a_line_of_100_mb() -> None:
    good = line_of(1).encode() + b"\n"
    long = b'{"custom_id": "long", "body": "%s"}\n' % (b"x" * 100_000_000)
    stream = io.BytesIO(good + long + good.replace(b'"1"', b'"2"'))
    del long
    tracemalloc.start()
    reader = RequestReader(stream, "in", {"/v1/embeddings": None}, 1_000_000)
    (group,) = reader.groups()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [each.custom_id for each in group.requests] == ["1", "long", "2"]
    assert [each.error is None for each in group.requests] == [True, False, True]
    assert "got 100,000,033 bytes, expected at most 1,000,000" in group.requests[1].error[1]
    assert peak < 6_000_000


def test_groups_are_bounded_by_texts_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(body: object, count: int) -> list[int]:
        line = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": body}
        data = f"{json.dumps(line)}\n".encode() * count
        reader = RequestReader(io.BytesIO(data), "in", {"/v1/embeddings": None}, 10_000_000)
        monkeypatch.setattr(reader, "_known", type("Free", (), {"add": lambda *_: None})())
        return [len(group.requests) for group in reader.groups()]

    monkeypatch.setattr(requests, "GROUP_LINES", 4096)
    assert sizes({"input": "a"}, 5000) == [4096, 904]
    assert sizes({"input": ["a"] * 2048}, 5) == [2, 2, 1]
    assert sizes({"query": "q", "documents": ["a"] * 1000}, 6) == [5, 1]
    assert sizes({"input": "a" * 1_500_000}, 5) == [3, 2]


MEMORY = """
import sys
sys.path.insert(0, {tests!r})
from helpers.fake_devices import ByBatch
from lastword import Embedder
from lastword.batch_files import requests
from lastword.cli import options
from lastword.cli.main import main
requests.GROUP_LINES = 256
options.open_embedder = lambda _: Embedder(device="cpu", runner=ByBatch(256))
raise SystemExit(main(["run-batch", "-i", "-", "-o", "/dev/null", "--quiet"]))
"""


@pytest.mark.timing
def test_constant_memory() -> None:
    def peak(count: int) -> int:
        script = MEMORY.format(tests=str(ROOT / "tests"))
        process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
        assert process.stdin is not None
        child = os.fork()
        if not child:  # feeds the process, while this one watches its memory
            try:
                for number in range(count):
                    body = {"input": f"text number {number}"}
                    line = {
                        "custom_id": f"request-{number}",
                        "method": "POST",
                        "url": "/v1/embeddings",
                    }
                    process.stdin.write(json.dumps(line | {"body": body}).encode() + b"\n")
                process.stdin.close()
            finally:
                os._exit(0)
        process.stdin.close()
        found = peak_anonymous(process)
        os.waitpid(child, 0)
        assert process.returncode == 0
        return found

    assert peak(40_000) < peak(2_000) + 30_000_000
