"""Compare lastword's server with others, in turns: first requests per second, then latencies at one rate for all."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lastword.bench.peers.libraries import vllm_version
from lastword.bench.serve.load import Load, percentile
from lastword.bench.serve.processes import free_port, stop_at_end, wait_for_health
from lastword.bench.serve.setting import Row, Setting, counts, is_right
from lastword.errors import ConfigError

OURS = "lastword"
# At least how many times as fast as the peer the server should be.
TARGETS = {"fastapi": 3.0, "vllm": 1.5}
_MOST = 400.0  # requests per second that no server can answer
_SHARE = 0.7  # the rate at which latencies are compared, as a share of what the slowest server can answer
_TOLERANCE = 1e-3  # the peers compute in fp32 too, but add in another order
_SCRIPT = Path(__file__).with_name("fastapi_server.py")


def check(beside: Iterable[str], model: Path | None, python: Path | None) -> None:
    """Raise ConfigError if the options of a comparison do not fit together, before anything is started."""
    beside = list(beside)
    if beside and model is None:
        said = "the peers cannot read the built-in model"
        raise ConfigError("--beside", said, expected="a checkpoint folder: --model FOLDER")
    if ("vllm" in beside) != (python is not None):
        got = "--python without --beside vllm" if python else "no --python"
        raise ConfigError(
            "--beside vllm", "needs the Python that has vLLM", got=got, expected="--python FILE"
        )
    if python is not None:
        vllm_version(python)


def command(name: str, folder: Path, port: int, python: Path | None) -> list[str]:
    """Return the command line that starts a peer on a loopback port, in fp32 and with its own defaults otherwise."""
    if name == "fastapi":
        return [sys.executable, str(_SCRIPT), str(folder), str(port)]
    return [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--runner", "pooling",
        "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip


def compare(setting: Setting) -> Iterable[Row]:
    """Measure queries, one per request: first as many as each server can answer, then at a rate that all can bear."""
    with ExitStack() as opened:
        urls = {OURS: opened.enter_context(setting.server()).url}
        for name in setting.args.beside:
            port = free_port()
            asked = command(name, setting.args.model, port, setting.args.python)
            with setting.log().open("wb") as log:
                process = subprocess.Popen(asked, stdout=log, stderr=log, start_new_session=True)
            opened.enter_context(stop_at_end(process))
            urls[name] = wait_for_health(process, f"http://127.0.0.1:{port}", name)
        rounds = 1 if setting.args.quick else 3
        most = take_turns(
            urls, rounds, lambda name, turn: _send(setting, urls[name], name, _MOST, turn)
        )
        fastest = {
            name: statistics.median(each["texts_per_s"] for each in most[name]) for name in urls
        }
        rate = _SHARE * min(fastest.values())
        equal = take_turns(
            urls, rounds, lambda name, turn: _send(setting, urls[name], name, rate, turn)
        )
    for name in setting.args.beside:
        yield judge(name, fastest, rate, most, equal)


def take_turns(
    names: Iterable[str], rounds: int, measure: Callable[[str, int], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Measure every server once per round, after a first round that does not count; return the results by name."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name, results in found.items():
            result = measure(name, turn)
            if turn:
                results.append(result)
    return found


def _send(setting: Setting, url: str, name: str, rate: float, turn: int) -> dict[str, Any]:
    """Send queries for --seconds, or 100 at a rate that no server can bear; vLLM gets the prompt in the text."""
    wanted = 100 if rate >= _MOST else max(10, round(rate * setting.args.seconds))
    count = min(setting.materials["queries"].blocks(1), wanted)
    prompt = setting.embedder.info.resolve_prompt(kind="query") if name == "vllm" else None
    return setting.generator.send(
        Load(url, "queries", 1, rate, count, seed=turn, prompt=prompt, tolerance=_TOLERANCE)
    )


def judge(
    name: str,
    fastest: dict[str, float],
    rate: float,
    most: dict[str, list[dict[str, Any]]],
    equal: dict[str, list[dict[str, Any]]],
) -> Row:
    """Return the row that compares lastword with one peer.

    Args:
        name: the peer.
        fastest: requests per second of each server.
        rate: requests per second of the loads in `equal`.
        most: results of the loads that no server can bear, by server.
        equal: results of the loads at `rate`, by server.
    """
    times = {
        each: [one for result in equal[each] for one in result["latencies"].get("200", [])]
        for each in (OURS, name)
    }
    said = [
        f"{each} {fastest[each]:.1f} requests/s, at {rate:.1f}/s p50 {percentile(taken, 50):.1f} ms, "
        f"p99 {percentile(taken, 99):.1f}"
        for each, taken in times.items()
    ]
    ratio, target = fastest[OURS] / fastest[name], TARGETS[name]
    return Row(
        name,
        f"queries, one per request: {'; '.join(said)}: {ratio:.2f}x",
        f"at least {target:g} times as many requests per second",
        ratio >= target,
        is_right(*most[OURS], *equal[OURS], *most[name], *equal[name]),
        {
            "requests_per_s": {each: fastest[each] for each in times},
            "rate": rate,
            "latencies_ms": times,
            "loads": [
                counts(each) for loads in (most, equal) for each in (*loads[OURS], *loads[name])
            ],
        },
    )
