"""The queue by itself: turns of clients and of small and large jobs, equal texts, cancelled ones, the end."""

import asyncio
from queue import Empty

import pytest
import torch

from lastword.model.postprocess import VectorFormat
from lastword.serve.finished import Finished
from lastword.serve.texts import Prepared
from lastword.serve.waiting import Job, WaitingTexts
from lastword.serve.worker import DeviceThread

FORMAT = VectorFormat(4, normalize=True)


def job(owner, *texts, done=lambda: None, form=FORMAT):
    """A job of texts given as (id, length)."""
    ids = [(number,) * length for number, length in texts]
    return Job(owner, Prepared(ids, [False] * len(ids), 0, (), form), done)


def group(waiting):
    """The ids of one group."""
    found, block = [], True
    try:
        while True:
            item = waiting.get(block=block)
            if item is None:
                break
            found.append(item.ids[0])
            block = False
    except Empty:
        pass
    return found


@pytest.fixture
def waiting():
    made = WaitingTexts(interactive_tokens=10)
    made.group_tokens = 100
    return made


def test_nothing_waits(waiting):
    with pytest.raises(Empty):
        waiting.get(block=False)


def test_a_group_is_one_batch(waiting):
    waiting.submit(job("a", *[(n, 30) for n in range(10)]))
    assert group(waiting) == [0, 1, 2]  # with the fourth it would be two batches
    assert (waiting.texts, waiting.tokens) == (7, 210)
    assert group(waiting) == [3, 4, 5]


@pytest.mark.parametrize(("prompt", "texts"), [(20, 9), (7, 3)])
def test_a_kept_prompt_takes_no_room_in_a_batch(waiting, prompt, texts):
    ids = [
        (5,) * prompt + (6,) * (30 - prompt)
    ] * 10  # a prompt of 7 tokens is too short to be used
    ids = [(*each, number) for number, each in enumerate(ids)]
    waiting.submit(Job("a", Prepared(ids, [False] * 10, 0, (5,) * prompt, FORMAT), lambda: None))
    assert len(group(waiting)) == texts


def test_a_text_longer_than_a_group_is_one(waiting):
    waiting.submit(job("a", (1, 500), (2, 20)))
    assert group(waiting) == [1]
    assert group(waiting) == [2]


def test_small_jobs_go_first_but_large_ones_get_every_fourth_group(waiting):
    waiting.submit(job("bulk", *[(1, 60) for _ in range(1)], *[(100 + n, 60) for n in range(20)]))
    seen = []
    for n in range(8):
        waiting.submit(job("a", (1000 + n, 5)))
        seen.append("small" if group(waiting)[0] >= 1000 else "large")
    assert seen.count("large") == 2
    assert seen[:3] == ["small"] * 3


def test_clients_take_turns(waiting):
    waiting.submit(job("many", *[(n, 20) for n in range(50)]))
    waiting.submit(job("few", *[(100 + n, 20) for n in range(5)]))
    first = group(waiting) + group(waiting)
    assert sum(each >= 100 for each in first) == 5
    late = job("late", *[(200 + n, 20) for n in range(5)])
    waiting.submit(late)
    assert sum(each >= 200 for each in group(waiting) + group(waiting)) == 5


def test_a_client_that_was_away_has_nothing_saved_up(waiting):
    waiting.submit(job("a", *[(n, 20) for n in range(40)]))
    for _ in range(4):
        group(waiting)
    waiting.submit(job("b", *[(100 + n, 20) for n in range(20)]))
    both = group(waiting) + group(waiting)
    assert 4 <= sum(each >= 100 for each in both) <= 6


def test_equal_texts_wait_once(waiting):
    done = []
    jobs = [job(owner, (1, 20), (1, 20), done=lambda: done.append(1)) for owner in "ab"]
    for each in jobs:
        waiting.submit(each)
    assert waiting.texts == 1
    item = waiting.get()
    third = job("c", (1, 20), done=lambda: done.append(1))
    waiting.submit(third)  # the device has it already
    assert waiting.texts == 0
    vector = torch.zeros(4)
    waiting.deliver(item.tag, vector, 20.0)
    assert len(done) == 3
    assert all(result is vector for each in (*jobs, third) for result in each.results)
    assert sum(each.computed for each in (*jobs, third)) == pytest.approx(20.0)
    other = VectorFormat(2, normalize=True)
    waiting.submit(job("a", (1, 20)))
    waiting.submit(job("a", (1, 20), form=other))
    assert waiting.texts == 2


def test_a_small_job_pulls_its_text_out_of_the_large_ones(waiting):
    waiting.submit(job("bulk", *[(n, 5) for n in range(50)]))
    waiting.submit(job("a", (49, 5)))
    assert group(waiting) == [49]
    assert 49 not in group(waiting) + group(waiting) + group(waiting)


def test_cancelled_texts_leave_the_queue(waiting):
    first, second = job("a", (1, 20), (2, 20)), job("b", (2, 20), (3, 20))
    waiting.submit(first)
    waiting.submit(second)
    waiting.cancel(first)
    assert (waiting.texts, waiting.tokens) == (2, 40)
    assert sorted(group(waiting)) == [2, 3]
    waiting.cancel(second)
    assert (waiting.texts, waiting.tokens) == (0, 0)
    waiting.cancel(second)


def test_a_result_for_nobody_is_dropped(waiting):
    gone = job("a", (1, 20))
    waiting.submit(gone)
    item = waiting.get()
    waiting.cancel(gone)
    waiting.deliver(item.tag, torch.zeros(4), 20.0)
    assert gone.results == [None]
    waiting.submit(job("a", (1, 20)))  # computed again
    assert waiting.texts == 1


def test_the_end_comes_after_what_waits(waiting):
    waiting.submit(job("a", (1, 20)))
    waiting.close()
    assert not waiting.submit(job("b", (2, 20)))
    assert group(waiting) == [1]
    assert waiting.get() is None


def test_a_failure_reaches_every_job(waiting):
    jobs = [job("a", (1, 20)), job("b", (2, 20))]
    for each in jobs:
        waiting.submit(each)
    waiting.get()
    error = RuntimeError()
    waiting.fail(error)
    assert [each.results for each in jobs] == [[error], [error]]
    assert waiting.get() is None
    assert (waiting.texts, waiting.tokens, waiting.age()) == (0, 0, 0.0)


def test_requests_that_finish_together_wake_the_event_loop_once(monkeypatch):
    async def finish_three():
        loop, finished, woken = asyncio.get_running_loop(), Finished(), []
        wake = loop.call_soon_threadsafe

        def count(act, *args, **named):
            woken.append(act)
            return wake(act, *args, **named)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        for _ in range(2):
            futures = [loop.create_future() for _ in range(3)]
            futures[1].cancel()  # its client is gone
            for future in futures:
                finished.add(future)
            await asyncio.wait_for(asyncio.gather(futures[0], futures[2]), 10)
        return woken

    assert len(asyncio.run(finish_three())) == 2


def test_the_speed_for_refusals_is_that_of_full_batches(waiting):
    nothing = lambda *_: None  # noqa: E731
    device = DeviceThread(nothing, waiting, nothing, nothing, nothing)
    device._measure(13, 0.01)  # one query while nothing else waits
    assert (device.full_speed, device.tokens_per_second) == (0, 1300)
    device._measure(90, 0.01)
    device._measure(13, 0.01)
    assert device.full_speed == pytest.approx(9000)
