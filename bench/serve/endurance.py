"""Scenarios of endurance: clients that go away, SIGTERM under load, and a long run with mixed traffic (soak)."""

import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

from lastword.bench.serve.load import Load
from lastword.bench.serve.processes import ServerProcess, run_generator
from lastword.bench.serve.setting import Row, Setting, is_right

# The server's memory may grow by the larger of these two, because allocators keep some of the memory that they get.
_MEMORY_BYTES, _MEMORY_SHARE = 16 << 20, 0.05
_SETTLE_SECONDS = 2.0
# A request whose body was sent at least this many seconds before SIGTERM must not be refused with a 503.
_ACCEPTED_SECONDS = 0.25


def disconnects(setting: Setting) -> Iterable[Row]:
    """Let clients leave in the middle of requests; compare queue, memory and descriptors before and after."""
    count = setting.args.disconnects
    with setting.server() as server:

        def leave(number: int, seed: int) -> dict[str, Any]:
            setting.generator.ask(do="disconnect", url=server.url, count=number, seed=seed)
            return setting.generator.wait_for_result()

        setting.burst(server, "queries")
        leave(max(100, count // 4), 1)  # lets the server allocate what it allocates only once
        before = _state(server)
        ended = leave(count, 2)
        idle = server.wait_until_idle()
        after = _state(server)
        last = setting.burst(server, "queries")
    grown = after["memory"] - before["memory"]
    same = idle and after["descriptors"] <= before["descriptors"]
    same = same and grown <= max(_MEMORY_BYTES, _MEMORY_SHARE * before["memory"])
    yield Row(
        "disconnects",
        f"{sum(ended.values()):,} clients went away: queue {'empty' if idle else 'NOT empty'}, descriptors "
        f"{before['descriptors']} to {after['descriptors']}, memory {before['memory'] / 2**20:.1f} to "
        f"{after['memory'] / 2**20:.1f} MB",
        "queue and descriptors as before; memory at most 16 MB or 5% more",
        same,
        same and is_right(last) and sum(ended.values()) == count,
        {"before": before, "after": after, "ended": ended},
    )


def _state(server: ServerProcess) -> dict[str, int]:
    """Wait until the server has been idle for a moment; return its bytes of memory and its number of descriptors."""
    server.wait_until_idle()
    time.sleep(_SETTLE_SECONDS)
    return {"memory": server.memory(), "descriptors": server.descriptors()}


def sigterm(setting: Setting) -> Iterable[Row]:
    """Stop servers under load; each server must answer the requests that it accepted, and end with status 0."""
    restarts, rng = setting.args.restarts, random.Random(7)  # noqa: S311  moments, not secrets
    totals = dict.fromkeys(("answered", "refused", "lost", "unanswered after"), 0)
    seconds, wrong, statuses = [], 0, []
    for turn in range(restarts):
        server = ServerProcess(setting.server_options(), setting.log())
        try:
            server.wait_until_ready()
            rate = 1.2 * setting.capacity("documents") * setting.size("documents") / 4
            load = Load(server.url, "documents", 4, rate, round(rate * 4), seed=turn, traced=True)
            setting.generator.begin(load)
            time.sleep(0.5 + rng.uniform(0.5, 2.0))
            began = time.monotonic()
            server.terminate()
            statuses.append(server.end())
            seconds.append(time.monotonic() - began)
            result = setting.generator.wait_for_result()
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
        wrong += result["wrong"]
        for name, number in verdicts(result["sent"], began).items():
            totals[name] += number
    clean = all(status == 0 for status in statuses)
    yield Row(
        "sigterm",
        f"{restarts} times under load: {totals['answered']:,} requests answered, {totals['refused']:,} refused, "
        f"{totals['lost']} accepted ones lost; exit status {'0 always' if clean else statuses}, the longest took "
        f"{max(seconds):.1f} s",
        "no accepted request lost",
        not totals["lost"] and clean,
        not totals["lost"] and clean and not wrong and totals["answered"] > 0,
        {"requests": totals, "seconds": seconds, "exit_statuses": statuses, "wrong": wrong},
    )


def verdicts(sent: Sequence[Sequence[Any]], signalled: float) -> dict[str, int]:
    """Count what became of the requests of a load during which the server got SIGTERM.

    Args:
        sent: for each request, the time when its body had been sent (None if it never was) and the status of the answer
            (0 if there was none).
        signalled: the time when SIGTERM was sent.

    Returns:
        The numbers of requests that were "answered", with 200 or 429; "refused", with another status, or because nobody
        listened; "lost", that is, sent before the signal and not answered, or sent at least `_ACCEPTED_SECONDS` before
        it and refused; and "unanswered after", that is, sent after the signal and not answered.
    """
    found = dict.fromkeys(("answered", "refused", "lost", "unanswered after"), 0)
    for at, status in sent:
        before = at is not None and at < signalled
        accepted = before and at < signalled - _ACCEPTED_SECONDS
        if status in (200, 429):
            name = "answered"
        elif status:
            name = "lost" if accepted else "refused"
        elif at is None:
            name = "refused"
        else:
            name = "lost" if before else "unanswered after"
        found[name] += 1
    return found


def soak(setting: Setting) -> Iterable[Row]:
    """Send mixed traffic for a long time, and watch the server's memory and descriptors.

    The values in the second half of the time are compared with the values after the first tenth.
    """
    end_after = 60 * setting.args.minutes
    readings: list[tuple[float, int, int]] = []
    totals = {"requests": 0, "wrong": 0, "lost": 0}
    with setting.server("--max-requests", "12") as server, run_generator(setting.folder) as others:
        capacity = setting.capacity("documents")
        began, turn = time.monotonic(), 0
        while time.monotonic() - began < end_after:
            turn += 1
            others.ask(do="slow", url=server.url, clients=20, seconds=5)
            others.wait_for_result()
            for result in _soak_turn(setting, server, capacity, turn):
                totals["requests"] += result["requests"]
                totals["wrong"] += result["wrong"]
                totals["lost"] += result["statuses"].get("0", 0)
            others.wait_for_result()
            others.ask(do="disconnect", url=server.url, count=30, seed=turn)
            others.wait_for_result()
            idle = server.wait_until_idle()
            readings.append((time.monotonic() - began, server.memory(), server.descriptors()))
            if not idle:
                totals["lost"] += 1
    yield _soak_row(setting.args.minutes, readings, totals)


def _soak_turn(
    setting: Setting, server: ServerProcess, capacity: float, turn: int
) -> list[dict[str, Any]]:
    """Send documents at half of the capacity, then queries, then a moment of overload; return the three results."""
    documents = Load(
        server.url, "documents", setting.size("documents"), 0.5 * capacity, max(1, round(capacity * 2)), seed=turn
    )  # fmt: skip
    queries = Load(server.url, "queries", 1, 40, 120, seed=turn)
    too_much = Load(
        server.url, "documents", setting.size("documents"), 10 * capacity, round(10 * capacity), seed=turn
    )  # fmt: skip
    return [setting.generator.send(load) for load in (documents, queries, too_much)]


def _soak_row(
    minutes: int, readings: Sequence[tuple[float, int, int]], totals: dict[str, int]
) -> Row:
    start = readings[min(len(readings) - 1, len(readings) // 10)]
    later = readings[len(readings) // 2 :]
    memory = sorted(held for _, held, _ in later)[len(later) // 2]
    grown = memory - start[1]
    descriptors = min(each for _, _, each in later)
    flat = grown <= max(_MEMORY_BYTES, _MEMORY_SHARE * start[1]) and descriptors <= start[2]
    return Row(
        "soak",
        f"{minutes} minutes, {totals['requests']:,} requests: memory {start[1] / 2**20:.1f} MB after the first tenth, "
        f"{memory / 2**20:.1f} MB in the second half (median); descriptors {start[2]} to {descriptors}",
        "memory at most 16 MB or 5% more; no more descriptors",
        flat,
        flat and not totals["wrong"] and not totals["lost"],
        {"readings": readings, **totals},
    )
