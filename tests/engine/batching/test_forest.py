"""Forests: every text's path has its tokens, shared rows are computed once, batches stay within the budget."""

import time
from itertools import pairwise

import pytest
import torch
from helpers.forest_paths import path_rows
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
        for text, which in zip(forest.texts.tolist(), forest.distinct.tolist(), strict=True):
            rows = path_rows(forest, forest.final_rows[which])
            assert forest.positions[rows].tolist() == list(range(len(rows)))
            assert not texts[text], "a text must be in one batch only"
            texts[text] = forest.ids[rows].tolist()
    return texts


def check(tokens: list[list[int]], budget: int, *, share: bool = True) -> list[Forest]:
    forests = list(plan_forests(tokens, budget, share=share))
    assert spell(forests, len(tokens)) == tokens
    assert sum(f.tokens_requested for f in forests) == sum(map(len, tokens))
    for forest in forests:
        assert forest.tokens_computed <= budget or len(set(forest.distinct.tolist())) == 1
        assert forest.tokens_computed <= forest.tokens_requested
        assert max(depth(forest, s) for s in range(len(forest.segments.start))) <= MAX_DEPTH
        assert forest.ids.dtype == forest.positions.dtype == torch.int32
    for before, after in pairwise(forests):
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
