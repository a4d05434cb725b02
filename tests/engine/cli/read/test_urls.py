"""Files of URLs: in memory, from a web server, and from an S3-compatible server where the packages are installed."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

from lastword.cli.documents.paths import Finder
from lastword.cli.main import main
from lastword.cli.read import Fields, Meter, Source, read, sources
from lastword.errors import InputError, MissingPackageError

fsspec = pytest.importorskip("fsspec")

ROWS = [{"id": i, "text": f"text {i}"} for i in range(30)]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()


def files() -> dict[str, bytes]:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=7)
    return {
        "a.jsonl": LINES,
        "deep/b.jsonl.gz": gzip.compress(LINES),
        "deep/c.parquet": sink.getvalue().to_pybytes(),
        "deep/d.csv": b"id,text\n1,one\n2,two\n",
        "deep/.hidden.txt": b"no\n",
        "deep/e.bin": b"no",
    }


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name, content in files().items():
        system.pipe_file(f"/corpus/{name}", content)
    yield "memory://corpus"
    system.store.clear()


class Quiet(SimpleHTTPRequestHandler):
    """A web server that can send parts of a file, as all larger ones can."""

    ranges = True

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        path, part = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not (self.ranges and part and path.is_file()):
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = (int(each) for each in part.removeprefix("bytes=").split("-"))
        body = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "served/corpus"
    for name, content in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/corpus"
        server.shutdown()


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Iterator[str]:
    """Serve a bucket with moto in a process of its own."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    for name, value in (
        ("AWS_ENDPOINT_URL", address),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urlopen(f"{address}/moto-api/").close()
                break
            except OSError:
                time.sleep(0.1)
        s3fs.S3FileSystem.clear_instance_cache()
        system = fsspec.filesystem("s3")
        system.mkdir("corpus")
        for name, content in files().items():
            system.pipe_file(f"corpus/{name}", content)
        yield "s3://corpus"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        process.kill()
        process.wait()


@pytest.fixture(params=["memory", "web", "bucket"])
def place(request) -> str:
    return request.getfixturevalue(request.param)


def texts(found: list[Source]) -> list[str]:
    return [record.text for record in read(found, Fields())]


def names(found: list[Source]) -> list[str]:
    return [each.path.partition("corpus/")[2] for each in found]


def test_files_folders_and_patterns(place: str) -> None:
    finder = Finder(None, whole=False, ignore=[])
    found = finder.find([f"{place}/"])
    assert names(found) == ["a.jsonl", "deep/b.jsonl.gz", "deep/c.parquet", "deep/d.csv"]
    every = [row["text"] for row in ROWS]
    assert texts(found) == [*every, *every, *every, "one", "two"]
    assert list(finder.notices()) == ["skipped 1 file of another kind (.bin), 1 hidden file"]
    found = Finder(None, whole=False, ignore=[]).find([f"{place}/deep/*.jsonl*"])
    assert names(found) == ["deep/b.jsonl.gz"]
    for ignore, given in (("deep/", "/"), ("deep/", "/**"), ("/deep/*", "/**")):
        found = Finder(None, whole=False, ignore=[ignore]).find([place + given])
        assert names(found) == ["a.jsonl"]
    (source,) = Finder(None, whole=False, ignore=[]).find([f"{place}/a.jsonl"])
    meter = Meter([source])
    assert len(list(read([source], Fields(), meter=meter))) == 30
    assert meter.position() == meter.total == len(LINES)


def test_hidden_folders_are_left_out_of_patterns(memory: str) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/corpus/.git/a.txt", b"no\n")
    found = Finder(None, whole=False, ignore=["deep/"]).find([f"{memory}/**"])
    assert names(found) == ["a.jsonl"]
    assert names(Finder(None, whole=False, ignore=[]).find([f"{memory}/.git/*"])) == [".git/a.txt"]


def test_what_is_missing_is_named(place: str) -> None:
    with pytest.raises(InputError, match=r"/gone\.jsonl: No such file"):
        texts(sources([f"{place}/gone.jsonl"], None))
    with pytest.raises(InputError, match="has no usable file"):
        Finder(None, whole=False, ignore=[]).find([f"{place}/*.gone"])


def test_a_job(place: str, capfd) -> None:
    command = ["embed", f"{place}/", "-o", "out/", "--unit-records", "8", "--quiet"]
    assert main(command) == 0
    pq = pytest.importorskip("pyarrow.parquet")
    assert pq.read_table("out").num_rows == 92
    assert main(command) == 0
    assert main(["embed", "-o", "out/", "--check"]) == 0
    scheme = place.partition(":")[0]
    if scheme == "http":
        time.sleep(1.1)  # the server tells whole seconds
        path = Path("served/corpus/a.jsonl")
        path.write_bytes(path.read_bytes().replace(b"text 3", b"text X"))
    else:
        system = fsspec.filesystem(scheme)
        name = next(each for each in system.find(place) if each.endswith("a.jsonl"))
        system.pipe_file(name, LINES.replace(b"text 3", b"text X"))
    assert main(command) == 2
    assert "has changed since the job was planned" in capfd.readouterr().err


def test_search(place: str, capfd) -> None:
    assert main(["search", "text 7", f"{place}/deep/c.parquet", "--top-k", "1"]) == 0
    assert "deep/c.parquet:8  text 7" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs"), ("smb", "another")]
)
def test_a_missing_package_is_named(scheme: str, package: str, monkeypatch) -> None:
    for name in ("s3fs", "gcsfs", "adlfs", "smbprotocol"):
        monkeypatch.setitem(sys.modules, name, None)
    # Forget the classes that other tests have imported. (`fsspec.registry` is not the module.)
    for name in ("_registry", "registry"):
        monkeypatch.setattr(sys.modules["fsspec.registry"], name, {})
    with pytest.raises(MissingPackageError, match=f"{scheme}://b/a.jsonl: needs {package}"):
        Finder(None, whole=False, ignore=[]).find([f"{scheme}://b/a.jsonl"])


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match=r"zzz://a.txt: cannot be read .Protocol not known"):
        Finder(None, whole=False, ignore=[]).find(["zzz://a.txt"])


def test_names_of_web_pages_end_before_the_query(web: str) -> None:
    (source,) = Finder(None, whole=False, ignore=[]).find([f"{web}/deep/b.jsonl.gz?key=a.txt"])
    assert (source.format, source.packed) == ("jsonl", "gz")
    assert len(texts([source])) == 30


def test_a_job_stops_rather_than_leave_out_what_the_network_fails_to_send(
    web: str, monkeypatch, capfd
) -> None:
    monkeypatch.setattr(Quiet, "ranges", False)
    command = ["embed", f"{web}/a.jsonl", "-o", "out/", "--unit-records", "8", "--quiet"]
    assert main(command) == 2
    assert "a.jsonl: cannot be read (The HTTP server doesn't" in capfd.readouterr().err
    monkeypatch.setattr(Quiet, "ranges", True)
    assert main(command) == 0
    assert pytest.importorskip("pyarrow.parquet").read_table("out").num_rows == 30


def test_a_server_that_fails_names_the_url(web: str, monkeypatch) -> None:
    monkeypatch.setattr(Quiet, "do_GET", lambda self: self.send_error(503, "busy"))
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read \(503"):
        texts([Source(f"{web}/a.jsonl", "jsonl")])


@pytest.mark.parametrize("option", ["-o", "--save-ranges", "--errors"])
@pytest.mark.parametrize("url", ["s3://bucket/out/", "memory://out.jsonl"])
def test_urls_are_no_outputs(option: str, url: str, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("one\n")
    assert main(["embed", "a.txt", "--on-error", "skip", option, url]) == 2
    assert f"{url}: a URL cannot be written to" in capfd.readouterr().err
    assert os.listdir() == ["a.txt"]
