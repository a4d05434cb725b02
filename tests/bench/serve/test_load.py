"""The load generator judges right: wrong answers are found, arrivals are bounded, no other machine is reached."""

import numpy as np
import orjson
import pytest

from lastword.bench.serve.endurance import verdicts
from lastword.bench.serve.generator import check_loopback
from lastword.bench.serve.load import Load, Sent, arrivals, percentile, summary
from lastword.bench.serve.material import Material


@pytest.fixture
def material():
    vectors = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    return Material([f"text {n}" for n in range(8)], vectors, "queries", 1e-5)


def answer(vectors, order=(0, 1)):
    from base64 import b64encode

    texts = [b64encode(vectors[n].tobytes()).decode() for n in order]
    data = [{"index": place, "embedding": text} for place, text in enumerate(texts)]
    return {"data": data}


def test_right_and_wrong_answers(material):
    right = answer(material.vectors[2:4])
    assert material.is_right(1, 2, orjson.dumps(right))
    assert not material.is_right(0, 2, orjson.dumps(right))
    assert not material.is_right(1, 2, orjson.dumps(answer(material.vectors[2:4], (1, 0))))
    assert not material.is_right(1, 2, orjson.dumps({"data": right["data"][:1]}))
    assert not material.is_right(1, 2, orjson.dumps({"data": right["data"][::-1]}))
    assert not material.is_right(1, 2, orjson.dumps(answer(material.vectors[2:4] + 2e-5)))
    assert not material.is_right(1, 2, orjson.dumps(answer(material.vectors[2:4] * np.nan)))
    for broken in (b"", b"[]", b"{}", b'{"data": [{"index": 0, "embedding": 1}]}'):
        assert not material.is_right(1, 2, broken)


def test_peers_may_answer_with_lists_of_numbers_and_a_little_off(material):
    near = [{"index": n, "embedding": (material.vectors[n] + 1e-4).tolist()} for n in (0, 1)]
    content = orjson.dumps({"data": near})
    assert not material.is_right(0, 2, content)
    assert material.is_right(0, 2, content, tolerance=1e-3)
    assert not material.is_right(1, 2, content, tolerance=1e-3)


def test_a_server_that_does_not_know_the_prompts_gets_them_in_the_texts(material):
    body = orjson.loads(material.body(1, 2, "Query: ", model="m"))
    texts = ["Query: text 2", "Query: text 3"]
    assert body == {"input": texts, "encoding_format": "base64", "model": "m"}


def test_material_is_read_as_written(material, tmp_path):
    material.save(tmp_path)
    found = Material.load(tmp_path, "queries")
    assert (found.texts, found.tolerance) == (material.texts, 1e-5)
    assert np.array_equal(found.vectors, material.vectors)
    assert orjson.loads(found.body(3, 2))["input"] == ["text 6", "text 7"]
    assert found.blocks(3) == 2


def test_arrivals():
    load = Load("http://127.0.0.1:1", "queries", 1, rate=50, count=2000)
    times = arrivals(load)
    assert times == arrivals(load)
    assert len(times) == 2000
    assert times[-1] == pytest.approx(40, rel=0.1)
    fixed = arrivals(Load("http://127.0.0.1:1", "queries", 1, rate=50, count=5, fixed=True))
    assert fixed == pytest.approx([0, 0.02, 0.04, 0.06, 0.08])
    assert arrivals(Load("http://127.0.0.1:1", "queries", 1, rate=0.1, count=500))[-1] <= 900


def test_latency_counts_from_the_arrival():
    load = Load("http://127.0.0.1:1", "queries", 2, rate=1, count=3, warm_seconds=1.0)
    done = [
        Sent(10.0, 0.0, done=10.5, status=200),
        Sent(11.5, 0.25, done=12.0, status=200),
        Sent(12.0, 0.0, done=13.0, status=429),
    ]
    found = summary(load, 10.0, done, 0)
    assert found["latencies"] == {"200": [500.0], "429": [1000.0]}
    assert found["statuses"] == {"200": 2, "429": 1}
    assert found["goodput"] == pytest.approx(2 / 1.0)  # one answer of two texts in a second
    assert found["texts_per_s"] == pytest.approx(4 / 2.0)


def test_percentile():
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([float(n) for n in range(100)], 99) == 99.0
    assert np.isnan(percentile([], 99))


def test_what_a_sigterm_may_cut():
    sent = [(1.0, 200), (9.5, 0), (9.5, 503), (9.9, 503), (10.5, 503), (10.5, 0), (None, 0)]
    found = verdicts(sent, 10.0)
    assert found == {"answered": 1, "refused": 3, "lost": 2, "unanswered after": 1}


@pytest.mark.parametrize("url", ["http://192.0.2.1:80", "http://10.0.0.1", "http://[2001:db8::1]"])
def test_no_other_machine(url):
    with pytest.raises(ValueError, match="not a loopback address"):
        check_loopback(url)
    check_loopback("http://127.0.0.1:8080")
    check_loopback("http://[::1]:8080")
