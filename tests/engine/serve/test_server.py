"""The routes that describe the server, keys, limits of bodies, the command, and how a server starts and ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch
from helpers.serving.servers import running, until
from helpers.small_models import make_reranker
from helpers.small_models import model as make_model

from lastword import ConfigError, Embedder, Reranker
from lastword.model_info import ModelInfo
from lastword.serve.http.app import is_short
from lastword.serve.settings import Limits, Settings
from lastword.weights import BUILTIN_NOTICE

ROUTE = "/v1/embeddings"


def test_models(server):
    (listed,) = server.get("/v1/models").json()["data"]
    assert "embed" in listed["id"]
    assert server.get(f"/v1/models/{listed['id']}").json() == listed
    missing = server.get("/v1/models/none/such")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_info_tells_every_limit(server, model):
    info = server.get("/info").json()
    assert info["limits"] == {n: getattr(Limits(), n) for n in Limits.__dataclass_fields__}
    assert info["max_input_length"] == model.max_length
    assert info["space"] == model.info.space_fingerprint()


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health(server, path):
    response = server.get(path)
    assert (response.status_code, response.content) == (200, b"")


def test_health_while_loading():
    waits: list[int] = []

    def load():
        until(lambda: waits)
        return Embedder(device="cpu")

    with running(load, wait=False) as server:
        for path in ("/health", "/info"):
            response = server.get(path)
            assert response.status_code == 503
            assert response.json() == {
                "error": "the model is being loaded",
                "error_type": "Unhealthy",
            }
            assert response.headers["retry-after"] == "1"
        assert server.post(ROUTE, {"input": "a"}).status_code == 503
        waits.append(1)
        until(lambda: server.get("/health").status_code == 200)


def test_request_ids(server):
    assert server.get("/health", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    made = server.get("/health", headers={"x-request-id": "x" * 200}).headers["x-request-id"]
    assert made.startswith("req-")


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/nothing", 404, "no such route."),
        ("GET", "//v1/embeddings", 404, "no such route."),
        ("GET", "/v1/embeddings", 405, "this route does not take GET; expected POST."),
        ("DELETE", "/v1/embeddings", 405, "this route does not take DELETE; expected POST."),
        ("POST", "/health", 405, "this route does not take POST; expected GET."),
    ],
)
def test_no_route(server, method, path, status, said):
    with server.client() as client:
        response = client.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error if isinstance(error, str) else error["message"]) == said


def test_openapi_describes_the_bodies(server):
    document = server.get("/openapi.json").json()
    reference = document["paths"][ROUTE]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    name = reference["$ref"].rpartition("/")[2]
    assert "encoding_format" in document["components"]["schemas"][name]["properties"]


@pytest.mark.parametrize(
    ("body", "short"),
    [
        ({"input": "a query"}, True),
        ({"input": ["how do plants make sugar?"] * 16}, True),
        ({"input": "a" * 2048}, False),
        ({"input": [""] * 200, "prompt": "a" * 1000}, False),  # 200 times the prompt
    ],
)
def test_only_short_bodies_are_handled_in_the_event_loop(body, short):
    assert is_short(json.dumps(body).encode()) is short


def test_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# comment\nfirst\n\nsecond \n")
    with running(lambda: Embedder(device="cpu"), Settings(port=0, key_file=keys)) as server:
        for header in ("", "Bearer third", "first2", "Bearer", "Bearer # comment", "Basic first"):
            response = server.get("/v1/models", headers={"authorization": header})
            assert response.status_code == 401, header
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["x-should-retry"] == "false"
        document = server.get("/openapi.json", headers={"authorization": "first"}).json()
        methods = [(path, method) for path, each in document["paths"].items() for method in each]
        assert len(methods) >= 6
        with server.client(headers={"authorization": "Bearer third"}) as client:
            for path, method in methods:
                is_open = path == "/health" or (method, path) == ("get", "/")
                expected = 200 if is_open else 401
                assert client.request(method, path).status_code == expected, path
        for header in ("Bearer first", "bearer second", "second"):
            assert server.get("/v1/models", headers={"authorization": header}).status_code == 200
        assert server.get("/health").status_code == 200
        keys.write_text("third\n")
        server.server._reread_keys()
        assert server.get("/info", headers={"authorization": "Bearer first"}).status_code == 401
        assert server.get("/info", headers={"authorization": "Bearer third"}).status_code == 200
        keys.write_text("")  # not to be used: the keys stay
        server.server._reread_keys()
        assert server.get("/info", headers={"authorization": "Bearer third"}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_a_public_address_needs_keys(host, tmp_path):
    with pytest.raises(ConfigError, match="--host: a public address without keys"):
        Settings(host=host)
    Settings(host=host, insecure=True)
    Settings(host=host, key_file=tmp_path / "keys")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_a_private_address_needs_none(host):
    assert Settings(host=host).host == host


def test_bodies_have_limits():
    limits = Limits(max_body_bytes=1000, body_seconds=1)
    with running(lambda: Embedder(device="cpu"), Settings(port=0, limits=limits)) as server:
        assert server.post(ROUTE, {"input": "a" * 2000}).status_code == 413
        with server.client() as client:  # without a length
            chunks = client.post(ROUTE, content=iter([b" " * 600] * 3))
            assert chunks.status_code == 413
            packed = client.post(ROUTE, content=b"x", headers={"content-encoding": "gzip"})
            assert packed.status_code == 415
        head = f"POST {ROUTE} HTTP/1.1\r\nHost: a\r\n"
        assert b" 408 " in talk(server, f"{head}Content-Length: 50\r\n\r\n{{")
        assert talk(server, head) == b""  # closed: headers that do not end
        assert talk(server, "") == b""  # closed: nothing comes
        assert b" 431 " in talk(server, f"{head}X: {'x' * 70_000}\r\n\r\n")
        assert server.post(ROUTE, {"input": "a"}).status_code == 200


def talk(server, text):
    """Send bytes, and return all that comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.server.port), timeout=20) as connection:
        connection.sendall(text.encode())
        got = b""
        while more := connection.recv(65536):
            got += more
            if b" 408 " in got:
                break
    return got


def command(*arguments, **kwargs):
    port = () if "--port" in arguments else ("--port", "0")
    return subprocess.Popen(
        [sys.executable, "-m", "lastword.cli.main", "serve", *port, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def seconds_until_ready():
    began = time.monotonic()
    process = command("--log-format", "json")
    try:
        url = json.loads(process.stderr.readline())["url"]
        until(lambda: httpx.get(f"{url}/health", trust_env=False).status_code == 200)
        return time.monotonic() - began
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.timing
def test_the_command_is_ready_within_three_seconds():
    took = [seconds_until_ready() for _ in range(3)]
    assert min(took) < 3, took


def test_the_command_serves_and_ends_on_sigterm():
    process = command("--log-format", "json")
    try:
        url = json.loads(process.stderr.readline())["url"]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            until(lambda: client.get("/health").status_code == 200)
            assert client.post(ROUTE, json={"input": "a secret"}).status_code == 200
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert out == ""
    lines = [json.loads(line) for line in log.splitlines()]
    said = [line["message"] for line in lines]
    assert said.index("ready") < said.index("stopping")
    assert said.index("ready") < said.index(
        f"open {url} in a browser to watch the server and try the model"
    )
    notice = lines[said.index(BUILTIN_NOTICE)]
    assert notice["level"] == "warning"
    assert said.index(BUILTIN_NOTICE) < said.index("ready")
    ready = lines[said.index("ready")]
    assert (ready["model"], ready["dim"]) == ("lastword-builtin-embedding", 256)
    (asked,) = [line for line in lines if line.get("path") == ROUTE]
    assert asked["status"] == 200
    assert asked["tokens"] >= 2
    assert "secret" not in log


def test_notices_are_for_each_model_and_can_be_left_out(tmp_path, caplog):
    make_model(tmp_path / "e", sentence_transformers=False)
    make_reranker(tmp_path / "r")

    def embedder():
        return Embedder(tmp_path / "e", device="cpu")

    def reranker():
        return Reranker(tmp_path / "r", device="cpu")

    expected = [*embedder().notices, *reranker().notices]
    assert len(expected) == 2
    for quiet in (False, True):
        caplog.clear()
        with caplog.at_level("INFO", "lastword.serve"):
            with running(embedder, Settings(port=0, quiet=quiet), load_reranker=reranker):
                until(lambda: "ready" in caplog.messages)
        assert [m for m in caplog.messages if m in expected] == ([] if quiet else expected)


def test_sigterm_under_load_loses_no_accepted_request():
    process = command("--log-format", "json")
    try:
        url = json.loads(process.stderr.readline())["url"]
        seen: list[int] = []

        def ask():
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                while True:
                    try:
                        seen.append(client.post(ROUTE, json={"input": ["text"] * 16}).status_code)
                    except httpx.ConnectError:
                        return
                    except httpx.TransportError:  # closed between two requests
                        seen.append(0)
                        return
                    if seen[-1] == 503:
                        return

        until(lambda: httpx.get(f"{url}/health", trust_env=False).status_code == 200)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: seen.count(200) >= 8)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        for thread in threads:
            thread.join()
    finally:
        process.kill()
    assert process.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines()]
    answered = [line["status"] for line in lines if line.get("path") == ROUTE]
    assert answered.count(200) == seen.count(200)
    assert set(answered) <= {200, 503}


def test_sighup_reads_the_keys_again(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    process = command("--api-key-file", str(keys), "--log-format", "json")
    try:
        url = json.loads(process.stderr.readline())["url"]
        old, new = ({"authorization": f"Bearer {key}"} for key in ("old", "new"))
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            until(lambda: client.get("/health").status_code == 200)
            assert client.get("/info", headers=old).status_code == 200
            keys.write_text("new\n")
            process.send_signal(signal.SIGHUP)
            until(lambda: client.get("/info", headers=new).status_code == 200)
            assert client.get("/info", headers=old).status_code == 401
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert "old" not in log


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run([*made, "-keyout", key, "-out", cert], check=True, capture_output=True)
    settings = Settings(port=0, tls_cert=cert, tls_key=key)
    with running(lambda: Embedder(device="cpu"), settings) as server:
        response = httpx.get(
            f"https://127.0.0.1:{server.server.port}/health", verify=False, trust_env=False
        )
        assert response.status_code == 200


def test_several_devices(model):
    with running(lambda: Embedder(device="cpu,cpu")) as server:
        texts = [f"text number {n}" for n in range(300)]
        data = server.post(ROUTE, {"input": texts}).json()["data"]
        found = torch.tensor([each["embedding"] for each in data])
        torch.testing.assert_close(found, model.encode(texts), atol=1e-5, rtol=0)


def test_the_command_ends_while_it_loads():
    process = command()
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log


def test_a_model_that_is_ready_after_the_end_is_no_error():
    go = threading.Event()

    def load():
        go.wait(60)
        return Embedder(device="cpu")

    def wait_for_the_end():
        until(lambda: not listening.sockets)
        go.set()

    with running(load, wait=False) as server:
        (listening,) = server.server.servers
        assert listening.sockets
        threading.Thread(target=wait_for_the_end).start()
    assert server.service.device.ready
    assert server.service.error is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host: a public address without keys; got 0.0.0.0"),
        (["/no/such/model"], "/no/such/model"),
        (["--api-key-file", "/no/keys"], "/no/keys: cannot be read"),
        (["--tls-cert", "x"], "--tls-cert: must be given together with --tls-key"),
        (["--port", "70000"], "--port: not a port from 0 to 65535"),
        (["--port", "http"], "--port: not a port from 0 to 65535; got 'http'. See"),
        (["--max-inputs", "0"], "--max-inputs: not a whole number of at least 1"),
    ],
)
def test_the_command_refuses(arguments, message):
    process = command(*arguments)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 2, log
    assert message in log.splitlines()[-1]
    assert "Traceback" not in log


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "orjson", "prometheus_client", "numpy"])
def test_a_missing_package_is_one_line(package, monkeypatch, capfd):
    from lastword.cli.main import main

    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", "--dry-run"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("lastword: lastword serve: needs ")
    assert "pip install 'lastword[serve]'" in line


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = command("--port", str(taken.getsockname()[1]))
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2, log
    assert (
        "cannot listen there; got Address already in use. Choose another --port or --host." in log
    )
    assert "Traceback" not in log


def test_dry_run(capfd):
    from lastword.cli.main import main

    began = time.monotonic()
    assert main(["serve", "--dry-run", "--max-inputs", "7"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert lines["max_inputs"] == "7"
    assert lines["weights"] == f"{ModelInfo(device='cpu').weights_bytes:,} bytes in float32"
    assert time.monotonic() - began < 60
    assert main(["serve", "--dry-run", "--quantize", "int8", "--device", "cpu,cpu"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    size = ModelInfo(device="cpu", quantize="int8").weights_bytes
    assert lines["weights"] == f"{size:,} bytes in int8 and float32 on each device"
