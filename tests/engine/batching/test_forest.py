"""Forests: every text's path has its tokens, shared rows are computed once, batches stay within the budget."""

import time
from itertools import pairwise

import pytest
import torch
from helpers.kernels.forest_paths import path_rows
from helpers.project import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from lastword.batching.forest import MAX_DEPTH, MIN_SHARED, Forest, plan_forests

TOKENS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40), min_size=1, max_size=30)


def depth(forest: Forest, segment: int) -> int:
    levels = 1
    while forest.segments.parent[segment] >= 0:
        segment = forest.segments.parent[segment]
        levels += 1
    return levels


def spell(forests: list[Forest], count: int) -> list[list[int]]:
    """Read the tokens of every text back from the forests."""
    texts: list[list[int]] = [[] for _ in range(count)]
    for forest in forests:
        ids = [token for prompt in forest.prompts for token in prompt] + forest.ids.tolist()
        positions = [i for prompt in forest.prompts for i in range(len(prompt))]
        positions += forest.positions.tolist()
        for text, which in zip(forest.texts.tolist(), forest.distinct.tolist(), strict=True):
            rows = path_rows(forest, forest.tokens_cached + forest.final_rows[which])
            assert [positions[row] for row in rows] == list(range(len(rows)))
            assert not texts[text], "a text must be in one batch only"
            texts[text] = [ids[row] for row in rows]
    return texts


def check(
    tokens: list[list[int]], budget: int, *, share: bool = True, prompts: list[list[int]] = ()
) -> list[Forest]:
    forests = list(plan_forests(tokens, budget, share=share, prompts=prompts))
    assert spell(forests, len(tokens)) == tokens
    assert sum(f.tokens_requested for f in forests) == sum(map(len, tokens))
    for forest in forests:
        assert forest.tokens_computed <= budget or len(set(forest.distinct.tolist())) == 1
        assert forest.tokens_computed <= forest.tokens_requested
        levels = MAX_DEPTH + bool(forest.prompts)
        assert max(depth(forest, s) for s in range(len(forest.segments.start))) <= levels
        assert forest.ids.dtype == forest.positions.dtype == torch.int32
    for before, after in pairwise(forests if not prompts else []):
        assert before.tokens_computed + len(tokens[after.texts[0]]) > budget, (
            "it had room for one more"
        )
    return forests


@settings(max_examples=examples(500), deadline=None)
@given(TOKENS, st.integers(1, 200))
def test_every_path_has_the_tokens_of_its_text(tokens: list[list[int]], budget: int) -> None:
    check(tokens, budget)


@settings(max_examples=examples(100), deadline=None)
@given(TOKENS)
def test_without_sharing_every_token_is_computed(tokens: list[list[int]]) -> None:
    (forest,) = check(tokens, 10_000, share=False)
    assert forest.tokens_computed == forest.tokens_requested


PROMPTED = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40), st.lists(st.integers(0, 3), max_size=12)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=examples(500), deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=3, max_size=3),
    PROMPTED,
    st.integers(1, 200),
)
def test_every_path_through_a_prompt_has_the_tokens_of_its_text(
    known: list[list[int]], drawn: list[tuple[int, int, list[int]]], budget: int
) -> None:
    """Prompts may begin alike, be prefixes of each other, end within the text's tokens or not be its beginning."""
    known = [*known, known[0] + [1, 2]]
    prompts = [known[which] for which, _, _ in drawn]
    tokens = [(known[which][:length] + rest) or [1] for which, length, rest in drawn]
    forests = check(tokens, budget, prompts=prompts)
    for forest in forests:
        assert set(forest.prompts) <= {tuple(prompt) for prompt in known}
        assert len(set(forest.prompts)) == len(forest.prompts)
        assert forest.tokens_cached == sum(map(len, forest.prompts))


@pytest.mark.parametrize(
    ("text", "computed"),
    [
        pytest.param([*range(20), 50, 51], 2, id="behind the prompt"),
        pytest.param([*range(19), 50], 1, id="the last token of the prompt merges with the text"),
        pytest.param([*range(20)], 1, id="the prompt itself: its last token is packed"),
        pytest.param([*range(9)], 1, id="a beginning of the prompt"),
        pytest.param([*range(8)], 8, id="too few tokens in common"),
        pytest.param([99, *range(20)], 21, id="another beginning"),
    ],
)
def test_a_cached_prompt_is_not_computed(text: list[int], computed: int) -> None:
    (forest,) = check([text], 100, prompts=[list(range(20))])
    assert forest.tokens_computed == computed
    assert forest.tokens_cached == (0 if computed == len(text) else 20)


def test_prompts_do_not_count_for_the_budget() -> None:
    queries = [[*range(100, 150), i, 3] for i in range(10)]
    forests = check(queries, 10, prompts=[list(range(100, 150))] * 10)
    assert [forest.tokens_computed for forest in forests] == [10, 10]


def test_duplicates_are_one_path() -> None:
    (forest,) = check([[5, 6, 7]] * 9 + [[1]], 100)
    assert (forest.tokens_requested, forest.tokens_computed) == (28, 4)


def test_a_text_that_is_a_prefix_of_another_costs_nothing() -> None:
    (forest,) = check([[1, 2], [1, 2, 3, 4, 5], [1]], 100)
    assert forest.tokens_computed == 5
    assert len(forest.segments.start) == 1


def test_a_prompt_of_1000_queries_is_computed_once_per_batch() -> None:
    prompt = list(range(100, 124))
    queries = [[*prompt, 1000 + i, *range(i % 7), 3] for i in range(1000)]
    asked = sum(map(len, queries))
    (forest,) = check(queries, 100_000)
    assert forest.tokens_computed == asked - 999 * len(prompt)
    forests = check(queries, 500)
    assert len(forests) > 10
    computed = sum(f.tokens_computed for f in forests)
    assert computed == asked - (1000 - len(forests)) * len(prompt)


def test_a_short_common_prefix_is_not_worth_a_fork() -> None:
    head = list(range(MIN_SHARED - 1))
    (forest,) = check([[*head, 50, 51], [*head, 60, 61]], 100)
    assert forest.tokens_computed == forest.tokens_requested
    head.append(40)
    (forest,) = check([[*head, 50, 51], [*head, 60, 61]], 100)
    assert forest.tokens_computed == forest.tokens_requested - MIN_SHARED


def test_growing_texts_share_one_segment() -> None:
    turns = [list(range(10 * n)) for n in range(1, 100)]
    (forest,) = check(turns, 10_000)
    assert forest.tokens_computed == 990
    with_end = [[*turn, 999_999] for turn in turns]
    (forest,) = check(with_end, 10_000)
    assert forest.tokens_computed == 990 + 99


def test_chains_deeper_than_the_bound_copy_what_they_cannot_share() -> None:
    step = 2 * MIN_SHARED
    levels = 3 * MAX_DEPTH
    # Each list forks off the previous one, further down.
    texts = [[2] * (step * level) + [1] + [0] * level for level in range(levels)]
    forests = check(texts, 100_000)
    assert max(depth(f, s) for f in forests for s in range(len(f.segments.start))) == MAX_DEPTH


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_budget_edges(extra: int) -> None:
    tokens = [[i] * 10 for i in range(1, 7)]
    forests = check(tokens, 30 + extra)
    assert len(forests) == (3 if extra < 0 else 2)


@pytest.mark.parametrize("budget", [99, 100, 101])
def test_a_text_over_the_budget_is_a_batch_of_its_own(budget: int) -> None:
    forests = check([list(range(1, 101)), [7]], budget)
    assert len(forests) == (1 if budget == 101 else 2)


def test_no_texts_no_forests() -> None:
    assert list(plan_forests([], 10)) == []


@pytest.mark.timing
def test_linear_in_tokens() -> None:
    tokens = [[(i * 7919 + j * j) % 150_000 for j in range(32)] for i in range(20_000)]
    began = time.thread_time()
    total = sum(f.tokens_computed for f in plan_forests(tokens, 16_384))
    seconds = time.thread_time() - began
    assert total <= 640_000
    assert seconds < 3.0, f"{total / seconds:.0f} tokens/s"
