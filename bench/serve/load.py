"""Open-loop load: requests are sent at times drawn in advance, whether or not earlier requests have been answered.

Latency counts from the drawn time, so the time that a request waits in the generator or for a connection counts too.
"""

import asyncio
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from time import monotonic
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson

from lastword.bench.serve.material import Material

ROUTE = "/v1/embeddings"
# No load has more requests, lasts longer, or has more requests open at once than this, whatever the command says.
MOST_REQUESTS, MOST_SECONDS, MOST_OPEN = 500_000, 900.0, 2_000
# How many seconds to wait for the last answers.
_GRACE_SECONDS = 130.0
# Timers are late by up to a millisecond. Below this rate (requests per second), the last 2 ms of a wait pass in a busy
# loop without a timer.
_SPIN_BELOW, _SPIN_SECONDS = 100.0, 0.002


@dataclass(frozen=True, slots=True)
class Load:
    """What to send to the server.

    Args:
        url: the server's address, on loopback.
        kind: "documents" or "queries".
        size: texts per request.
        rate: requests per second.
        count: number of requests.
        fixed: whether the requests are equally far apart; otherwise they are a Poisson process.
        warm_seconds: length of the warm-up. Requests due in it are checked, but do not count for latencies; answers in
            it do not count for goodput.
        seed: seed of the drawn times.
        traced: whether to record when each body was sent.
        fields: further fields of every request's JSON body.
        prompt: what to put before each text, for a server that does not know the model's prompts; None to name the
            prompt in the request.
        tolerance: as for `Material`; None for the texts' own.
    """

    url: str
    kind: str
    size: int
    rate: float
    count: int
    fixed: bool = False
    warm_seconds: float = 0.0
    seed: int = 0
    traced: bool = False
    fields: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    tolerance: float | None = None


@dataclass(slots=True)
class Sent:
    """One request and what became of it; times are in seconds of the system's monotonic clock."""

    due: float  # the drawn time
    late: float  # how many seconds after `due` the generator began to send the request
    sent: float | None = None  # when the body had been sent; None if that is not known
    done: float = 0.0  # when the answer was complete, or the request had failed
    status: int = 0  # the answer's HTTP status; 0 if there was no answer
    wrong: bool = False  # whether the answer is wrong


def arrivals(load: Load) -> list[float]:
    """Draw the times at which the requests of a load are sent, in seconds from its start."""
    rng = random.Random(load.seed)  # noqa: S311  arrivals, not secrets
    at, times = 0.0, []
    for _ in range(min(load.count, MOST_REQUESTS)):
        times.append(at)
        at += 1 / load.rate if load.fixed else rng.expovariate(load.rate)
    return [time for time in times if time <= MOST_SECONDS]


async def send(load: Load, material: Material) -> dict[str, Any]:
    """Send a load, wait for the answers, check them, and return `summary`."""
    free = deque(range(material.blocks(load.size)))
    bodies = [material.body(block, load.size, load.prompt, **load.fields) for block in free]
    done: list[Sent] = []
    tasks: set[asyncio.Task[None]] = set()
    held_back = 0
    async with _session(traced=load.traced) as session:
        begin = monotonic() + 0.05
        for at in arrivals(load):
            due = begin + at
            await _until(due, load.rate)
            if not free or len(tasks) >= MOST_OPEN:
                held_back += 1
                continue
            block = free.popleft()
            one = Sent(due, monotonic() - due)
            done.append(one)
            asked = _ask(session, load, material, bodies[block], block, one)
            task = asyncio.create_task(asked)
            tasks.add(task)

            def release(task: asyncio.Task[None], block: int = block) -> None:
                tasks.discard(task)
                free.append(block)

            task.add_done_callback(release)
        if tasks:
            await asyncio.wait(set(tasks), timeout=_GRACE_SECONDS)
        for task in set(tasks):
            task.cancel()
    return summary(load, begin, done, held_back)


def _session(*, traced: bool) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()

    async def chunk_sent(_: object, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.sent = monotonic()

    trace.on_request_chunk_sent.append(chunk_sent)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=10),
        timeout=aiohttp.ClientTimeout(total=_GRACE_SECONDS),
        trace_configs=[trace] if traced else [],
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _until(due: float, rate: float) -> None:
    spin = _SPIN_SECONDS if rate < _SPIN_BELOW else 0.0
    while (left := due - monotonic()) > 0:
        await asyncio.sleep(left - spin if left > spin else 0)


async def _ask(
    session: aiohttp.ClientSession,
    load: Load,
    material: Material,
    body: bytes,
    block: int,
    one: Sent,
) -> None:
    """Send one request and check its answer."""
    try:
        async with session.post(
            load.url + ROUTE,
            data=body,
            headers={"content-type": "application/json"},
            trace_request_ctx=one,
        ) as response:
            content = await response.read()
            one.done, one.status = monotonic(), response.status
            refused = response.status in (429, 503)
            if refused and "retry-after" not in response.headers:
                one.wrong = True
    except (aiohttp.ClientError, OSError, TimeoutError):
        one.done = monotonic()
        return
    if one.status == 200:
        one.wrong = not material.is_right(block, load.size, content, load.tolerance)
    elif refused:
        one.wrong = one.wrong or not _is_refusal(content)
    else:
        one.wrong = True


def _is_refusal(content: bytes) -> bool:
    """Return whether the body of an answer is an error with a message, as every refusal must be."""
    try:
        return bool(orjson.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return False


def summary(load: Load, begin: float, done: list[Sent], held_back: int) -> dict[str, Any]:
    """Return the counts and times measured while a load was sent to the server.

    Args:
        load: the load.
        begin: the monotonic time at which it began.
        done: its requests.
        held_back: number of requests that were not sent, because too many were open.

    Returns:
        A dict with, among others, `latencies`, in milliseconds, by status; `late_ms`, the p99 of `Sent.late`;
        `texts_per_s`, from the first request to the last answer; and `goodput`, the texts per second answered after the
        warm-up, while requests were being sent.
    """
    counted = [one for one in done if one.due - begin >= load.warm_seconds]
    latencies: dict[str, list[float]] = {}
    for one in counted:
        latencies.setdefault(str(one.status), []).append(round(1e3 * (one.done - one.due), 3))
    last_due = max((one.due for one in done), default=begin)
    good = [one for one in done if one.status == 200 and not one.wrong]
    since = begin + load.warm_seconds
    within = sum(since <= one.done <= last_due for one in good)
    return {
        "requests": len(done),
        "statuses": dict(Counter(str(one.status) for one in done)),
        "wrong": sum(one.wrong for one in done),
        "held_back": held_back,
        "late_ms": percentile([1e3 * one.late for one in done], 99),
        "latencies": latencies,
        "texts_per_s": len(good)
        * load.size
        / max(1e-9, max((g.done for g in good), default=since) - begin),
        "goodput": within * load.size / max(1e-9, last_due - since),
        "sent": [[one.sent, one.status] for one in done] if load.traced else [],
    }


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile, which is one of the values; NaN if there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
