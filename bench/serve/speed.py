"""Scenarios of speed: throughput, latency at low load, overload, slow clients."""

import random
import statistics
import time
from collections.abc import Iterable
from typing import Any

from lastword.bench.serve.load import Load, percentile
from lastword.bench.serve.processes import ServerProcess, run_generator
from lastword.bench.serve.setting import Row, Setting, counts, encoder, is_right

_ROUNDS = 3
_LOW_RATE = 20.0  # requests per second of low load
_TIMES = 20  # the largest load of `overload`, as a multiple of the capacity
# The server's --max-requests in `overload`: the queue is soon full, and it is shorter than the number of requests that
# the generator can have open at once (`Material.blocks`).
_IN_HAND = "12"
_SLOW_SHARE = 0.3  # share of the capacity that the normal traffic beside slow clients takes


def throughput(setting: Setting) -> Iterable[Row]:
    """Compare the server's texts per second with `encode`'s; the two take turns."""
    with setting.server() as server:
        for kind in setting.materials:
            yield _throughput(setting, server, kind)


def _throughput(setting: Setting, server: ServerProcess, kind: str) -> Row:
    encode = encoder(setting.embedder, kind)
    texts = list(setting.materials[kind].texts)
    served, encoded, results = [], [], []
    for turn in range(1 + (1 if setting.args.quick else _ROUNDS)):
        start = time.perf_counter()
        encode(texts, show_progress_bar=False)
        took = time.perf_counter() - start
        results.append(setting.burst(server, kind))
        if turn:  # the first turn is a warm-up
            encoded.append(len(texts) / took)
            served.append(float(results[-1]["texts_per_s"]))
    share = statistics.median(each / ours for each, ours in zip(served, encoded, strict=True))
    over, alone = statistics.median(served), statistics.median(encoded)
    return Row(
        "throughput",
        f"{kind}, {setting.size(kind)} per request, base64: {over:,.0f} texts/s, encode {alone:,.0f}: {share:.0%}",
        "at least 80% of encode",
        share >= 0.8,
        is_right(*results),
        {
            "kind": kind,
            "served": served,
            "encode": encoded,
            "share": share,
            "loads": [counts(each) for each in results],
        },
    )


def latency(setting: Setting) -> Iterable[Row]:
    """Compare the server's latency for one query at low load with the time of a call of `encode_query`.

    The calls are as far apart as the requests.
    """
    count = round(_LOW_RATE * setting.args.seconds / 2)
    over, called, results, late = [], [], [], 0.0
    with setting.server() as server:
        for turn in range(1 + (1 if setting.args.quick else _ROUNDS)):
            calls = _timed_calls(setting, count, turn)
            load = Load(server.url, "queries", 1, _LOW_RATE, count, seed=turn)
            results.append(setting.generator.send(load))
            if turn:
                called += calls
                over += results[-1]["latencies"]["200"]
                late = max(late, results[-1]["late_ms"])
    served, alone = statistics.median(over), statistics.median(called)
    yield Row(
        "latency",
        f"one query, {_LOW_RATE:.0f} requests/s: p50 {served:.2f} ms, p99 {percentile(over, 99):.2f}; encode_query "
        f"{alone:.2f} and {percentile(called, 99):.2f}: {served - alone:.2f} ms over",
        "p50 at most 1.5 ms over encode_query",
        served - alone <= 1.5,
        is_right(*results),
        {
            "served_ms": served,
            "encode_query_ms": alone,
            "generator_late_ms": late,
            "loads": [counts(each) for each in results],
        },
    )


def _timed_calls(setting: Setting, count: int, seed: int) -> list[float]:
    """Return the milliseconds of each call of `encode_query`, made at times drawn like the arrivals of a load."""
    rng = random.Random(seed)  # noqa: S311  arrivals, not secrets
    taken = []
    for query in list(setting.materials["queries"].texts)[:count]:
        start = time.perf_counter()
        setting.embedder.encode_query(query, show_progress_bar=False)
        end = time.perf_counter()
        taken.append(1e3 * (end - start))
        time.sleep(max(0.0, rng.expovariate(_LOW_RATE) - (end - start)))
    return taken


def overload(setting: Setting) -> Iterable[Row]:
    """Compare the texts answered per second at 20 times the capacity with the best at lower loads."""
    with setting.server("--max-requests", _IN_HAND) as server:
        for kind in setting.materials:
            yield _overload(setting, server, kind)


def _overload(setting: Setting, server: ServerProcess, kind: str) -> Row:
    seconds, capacity = setting.args.seconds, setting.capacity(kind)
    warm = seconds / 4
    results: list[dict[str, Any]] = []
    for times in (0.9, 1.1, 1.5, float(_TIMES)):
        rate = times * capacity
        count = round(rate * (seconds + warm))
        load = Load(
            server.url, kind, setting.size(kind), rate, count, warm_seconds=warm, seed=len(results)
        )
        results.append(setting.generator.send(load))
    *less, most = results
    best = max(result["goodput"] for result in less)
    refused = most["latencies"].get("429", [])
    share, slowest = most["goodput"] / best, percentile(refused, 99)
    right = is_right(*results)
    return Row(
        "overload",
        f"{kind}, {most['requests'] / (seconds + warm):,.0f} requests/s, {_TIMES} times the capacity: "
        f"{most['goodput']:,.0f} texts/s, best at less {best:,.0f}: {share:.0%}; {len(refused):,} answers 429, "
        f"p50 {percentile(refused, 50):.1f} ms, p99 {slowest:.1f}",
        "at least 90% of the best; 429 with p99 below 100 ms",
        share >= 0.9 and slowest < 100 and not most["held_back"],
        right,
        {"kind": kind, "share": share, "refused_p99_ms": slowest, "loads": [counts(each) for each in results]},
    )  # fmt: skip


def slow(setting: Setting) -> Iterable[Row]:
    """Compare the p99 latency of normal traffic with and without slow clients; the two cases take turns."""
    clients, seconds = setting.args.clients, setting.args.seconds
    without, beside, results, met = [], [], [], []
    with setting.server() as server, run_generator(setting.folder) as others:
        rate = min(100.0, _SLOW_SHARE * setting.capacity("queries") * setting.size("queries"))
        for turn in range(1 if setting.args.quick else _ROUNDS):
            load = Load(server.url, "queries", 1, rate, round(rate * seconds), seed=turn)
            results.append(setting.generator.send(load))
            without += results[-1]["latencies"]["200"]
            others.ask(
                do="slow", url=server.url, clients=clients, seconds=seconds + 4 + clients / 250
            )
            others.wait_for_result()
            results.append(setting.generator.send(load))
            beside += results[-1]["latencies"]["200"]
            met.append(others.wait_for_result())
        server.wait_until_idle()
    yield _slow_row(clients, rate, without, beside, results, met)


def _slow_row(
    clients: int,
    rate: float,
    without: list[float],
    beside: list[float],
    results: list[dict[str, Any]],
    met: list[dict[str, Any]],
) -> Row:
    before, after = percentile(without, 99), percentile(beside, 99)
    medians = statistics.median(without), statistics.median(beside)
    begun = min(each.get("begun", 0) for each in met)
    return Row(
        "slow",
        f"{clients} slow clients beside {rate:.0f} queries/s: p99 {before:.2f} to {after:.2f} ms "
        f"({after / before - 1:+.0%}), p50 {medians[0]:.2f} to {medians[1]:.2f}",
        "p99 at most 20% more",
        after <= 1.2 * before and begun == clients,
        is_right(*results),
        {"p99_ms": [before, after], "p50_ms": list(medians), "slow_clients": met},
    )
