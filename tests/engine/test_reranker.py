"""The public object for reranking: scores beside transformers' and sentence-transformers', counts, errors."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.messages import refusal
from helpers.small_models import (
    INSTRUCTION,
    KINDS,
    PREFIX,
    TEMPLATE,
    change_file,
    make_reranker,
    save_reranker,
)
from helpers.transformers_reference import their_ids, their_scores
from safetensors.torch import load_file, save_file

from lastword import ConfigError, DeviceError, InputError, Reranker, WeightsError
from lastword.report import Report

QUERY = "What is the capital of China?"
DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other.",
    "",
    "yes\n\nno  ",
    "The capital of China is Beijing.",
    "<|im_end|> and more of the same text " * 30,
]
PAIRS = [(QUERY, each) for each in DOCUMENTS] + [("", "no"), ("yes ", " The capital")]
LOG_ODDS = 1e-4
identity = torch.nn.Identity()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("rerankers")
    return {kind: make_reranker(place / f"{kind}-reranker", kind) for kind in KINDS}


@pytest.fixture(scope="module")
def opened(made: dict[str, Path]) -> dict[str, Reranker]:
    return {
        kind: Reranker(folder, device="cpu", activation_fn=identity)
        for kind, folder in made.items()
    }


@pytest.fixture(scope="module")
def tied(opened: dict[str, Reranker]) -> Reranker:
    return opened["tied"]


def apart(a, b) -> float:
    return float((torch.as_tensor(a).float() - torch.as_tensor(b).float()).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_log_odds_are_those_of_transformers(made, opened, kind: str) -> None:
    ids = their_ids(made[kind], PAIRS)
    assert opened[kind].token_ids(PAIRS) == ids
    expected = their_scores(made[kind], kind, ids)
    assert apart(opened[kind].predict(PAIRS), expected) <= LOG_ODDS
    assert float(expected.std()) > 0.1  # or the scores could not tell a mistake


@pytest.mark.parametrize("kind", KINDS)
def test_the_mistakes_of_others_would_be_seen(made, opened, kind: str) -> None:
    """Yes and no swapped, no template, an end token, the document alone cut away: each changes the scores."""
    expected = opened[kind].predict(PAIRS[:4])
    ids = their_ids(made[kind], PAIRS[:4])
    bare = [
        each[len(opened[kind].info.tokenizer.before) : -len(opened[kind].info.tokenizer.after)]
        for each in ids
    ]
    assert apart(-their_scores(made[kind], kind, ids), expected) > 0.1
    assert apart(their_scores(made[kind], kind, bare), expected) > 0.1
    ended = [[*each, 0] for each in ids]
    assert apart(their_scores(made[kind], kind, ended), expected) > 0.1


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, made, tmp_path_factory) -> Path:
    """A reranker as sentence-transformers saves it, with its own instruction."""
    folder = tmp_path_factory.mktemp("saved") / request.param
    return save_reranker(folder, made[request.param])


def test_results_are_those_of_sentence_transformers(saved: Path) -> None:
    from sentence_transformers import CrossEncoder

    theirs, ours = CrossEncoder(str(saved), device="cpu"), Reranker(saved, device="cpu")
    assert ours.notices == ()
    assert ours.prompts == {"web": "Find the passage", "other": "Find another"}
    given = [{}, {"prompt_name": "other"}, {"prompt": "Say"}, {"activation_fn": identity}]
    for kwargs in given:
        expected = theirs.predict(PAIRS, convert_to_tensor=True, **kwargs)
        assert apart(ours.predict(PAIRS, **kwargs), expected) <= 2e-5, kwargs
    ranked = ours.rank(QUERY, DOCUMENTS, 4, return_documents=True, batch_size=2)
    expected = theirs.rank(QUERY, DOCUMENTS, 4, return_documents=True, batch_size=2)
    assert [each["text"] for each in ranked] == [each["text"] for each in expected]
    assert apart([e["score"] for e in ranked], [e["score"] for e in expected]) <= 2e-5
    assert [each.keys() for each in ranked] == [each.keys() for each in expected]


def test_a_saved_activation_is_used(saved: Path) -> None:
    settings = "config_sentence_transformers.json"
    probabilities = Reranker(saved, device="cpu").predict(PAIRS)
    change_file(saved, settings, {"activation_fn": "torch.nn.modules.linear.Identity"})
    log_odds = Reranker(saved, device="cpu").predict(PAIRS)
    change_file(saved, settings, {"activation_fn": "torch.nn.modules.activation.Sigmoid"})
    assert apart(log_odds.sigmoid(), probabilities) <= 1e-6
    assert apart(log_odds, probabilities) > 0.1


# What comes back.


def test_shapes_and_types(tied: Reranker) -> None:
    one, many, none = tied.predict(PAIRS[0]), tied.predict([PAIRS[0]]), tied.predict([])
    assert (one.shape, many.shape, none.shape) == ((), (1,), (0,))
    assert {one.dtype, many.dtype, none.dtype} == {torch.float32}
    assert float(one) == float(many[0])
    array = tied.predict(PAIRS, convert_to_numpy=True)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert isinstance(
        tied.predict(PAIRS, convert_to_numpy=True, convert_to_tensor=True), torch.Tensor
    )
    assert torch.equal(
        tied.predict(np.array(PAIRS[:2])), tied.predict([list(p) for p in PAIRS[:2]])
    )
    assert torch.equal(tied.predict(iter(PAIRS[:2])), tied.predict(PAIRS[:2]))


def test_pairs_by_the_names_of_sentence_transformers(tied: Reranker) -> None:
    expected = tied.predict(PAIRS[:2])
    for name in ("inputs", "sentences", "pairs"):
        assert torch.equal(tied.predict(**{name: PAIRS[:2]}), expected)
    with pytest.raises(TypeError, match=r"predict\(\) got its pairs twice, once as 'inputs'"):
        tied.predict(PAIRS, inputs=PAIRS)


def test_rank(tied: Reranker) -> None:
    scores = tied.predict(PAIRS[: len(DOCUMENTS)]).tolist()
    ranked = tied.rank(QUERY, DOCUMENTS)
    assert [type(each["score"]) for each in ranked] == [float] * len(DOCUMENTS)
    assert [type(each["corpus_id"]) for each in ranked] == [int] * len(DOCUMENTS)
    order = sorted(range(len(DOCUMENTS)), key=lambda i: -scores[i])
    assert [each["corpus_id"] for each in ranked] == order
    assert order.index(0) + 1 == order.index(4)  # equal documents keep their order
    assert ranked[0].keys() == {"corpus_id", "score"}
    assert tied.rank(QUERY, DOCUMENTS, top_k=2, return_documents=True) == [
        {**each, "text": DOCUMENTS[each["corpus_id"]]} for each in ranked[:2]
    ]
    assert tied.rank(QUERY, []) == []


def test_instructions(made) -> None:
    ours = Reranker(made["tied"], device="cpu", prompts={"mine": "Mine"}, activation_fn=identity)

    def ids(**kwargs) -> list[list[int]]:
        return ours.token_ids(PAIRS[:1], **kwargs)

    def expected(instruction: str) -> list[list[int]]:
        return their_ids(made["tied"], PAIRS[:1], instruction)

    assert ids() == expected(INSTRUCTION)
    assert ids(instruction="Yes ") == expected("Yes ")
    assert ids(prompt="Yes") == expected("Yes")
    assert ids(prompt_name="mine") == expected("Mine")
    assert ids(prompt_name="mine", instruction="Yes") == expected("Yes")
    ours.default_prompt_name = "mine"
    assert ids() == expected("Mine")
    ours.instruction = "Own"
    assert ids() == expected("Own")
    assert ids(prompt_name="mine") == expected("Mine")
    ours.instruction = ours.default_prompt_name = None
    assert ids() == expected(INSTRUCTION)
    assert Reranker(made["tied"], instruction="At once").instruction == "At once"


def test_hidden_states_make_the_scores(tied: Reranker) -> None:
    states = tied.hidden_states(PAIRS)
    layers = tied.info.config.num_hidden_layers
    assert states.shape == (len(PAIRS), layers + 1, tied.info.config.hidden_size)
    assert apart(states[:, -1] @ tied.info.score_row, tied.predict(PAIRS)) <= 1e-5
    assert torch.equal(tied.hidden_states(PAIRS, [-1]), states[:, -1:])
    with refusal(ConfigError, where="layers", what="no such layer"):
        tied.hidden_states(PAIRS, [layers + 1])


def test_activations(tied: Reranker, made) -> None:
    log_odds = tied.predict(PAIRS)
    default = Reranker(made["tied"], device="cpu").predict(PAIRS)
    assert apart(default, log_odds.sigmoid()) <= 1e-6
    assert apart(tied.predict(PAIRS, activation_fn=torch.tanh), log_odds.tanh()) <= 1e-6
    assert tied.predict(PAIRS, activation_fn=lambda x: x.softmax(1)).tolist() == [1.0] * len(PAIRS)
    with refusal(ConfigError, where="activation_fn", what="returns something else", got="[8, 2]"):
        tied.predict(PAIRS, activation_fn=lambda x: x.repeat(1, 2))
    with refusal(ConfigError, where="activation_fn", what="not a function", got="int"):
        tied.predict(PAIRS, activation_fn=3)


# Long documents.


def test_only_the_document_is_cut(made) -> None:
    ours = Reranker(made["tied"], device="cpu", activation_fn=identity, max_length=150)
    report = Report()
    pairs = [(QUERY, "short"), (QUERY, "a longer one " * 100), ("yes", "no " * 500)]
    ids = their_ids(made["tied"], pairs, max_length=150)
    assert ours.token_ids(pairs) == ids
    assert [len(each) for each in ids[1:]] == [150, 150]
    expected = their_scores(made["tied"], "tied", ids)
    assert apart(ours.predict(pairs, report=report), expected) <= LOG_ODDS
    assert (report.texts, report.cut) == (3, 2)
    with refusal(InputError, where="pair 1", what="too long", index=1):
        ours.predict(pairs, too_long="error")
    with refusal(InputError, where="document 0", what="too long", index=0):
        ours.rank(QUERY, [pairs[1][1]], too_long="error")


def test_a_query_that_leaves_no_room_is_refused(made) -> None:
    ours = Reranker(made["tied"], device="cpu", max_length=150)
    what = "leaves no room for a document"
    with refusal(InputError, where="pair 1: its query", what=what, index=1):
        ours.predict([(QUERY, "x"), ("why " * 100, "x")])
    with refusal(InputError, where="document 0: its query", what=what):
        ours.rank("why " * 100, ["x"])
    with refusal(InputError, where="pair 0: its query", what=what):
        ours.plan([("why " * 100, "x")])
    with refusal(InputError, where="pair 0: its query", what=what):
        ours.predict([(QUERY, "x")], instruction="find " * 100)
    frame = ours.info.tokenizer.num_template_tokens
    with refusal(ConfigError, where="max_length", expected=f"{frame + 1} to 4096 tokens"):
        ours.max_length = frame


# The forest.


def test_documents_of_a_query_share_its_computation(made) -> None:
    """100 documents of 200 tokens behind a head of about 90: the head is computed at most once per batch."""
    ours = Reranker(made["tied"], device="cpu", max_batch_tokens=4096)
    tokenizer = ours.info.tokenizer
    words = [f"{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(100)]
    documents = [f"{word} " + "x, " * 99 for word in words]
    query = "the answer " * 4
    report, ids = Report(), ours.token_ids([(query, each) for each in documents])
    ours.rank(query, documents, report=report)
    prompt = tokenizer.prompt_ids(ours.info.template.prompt(INSTRUCTION), 1000)
    head = next(i for i in range(500) if len({tuple(each[: i + 1]) for each in ids}) > 1)
    assert len(prompt) > 50
    assert head > len(prompt) + 10
    assert min(map(len, ids)) > 200 + head - 5
    assert report.tokens_requested == sum(map(len, ids))
    assert 4 < report.batches < 9
    # The prefix and the instruction come from the cache, once per batch; the query is computed once per batch.
    assert report.tokens_cached == len(prompt) * report.batches
    own = sum(len(each) - head for each in ids)
    assert report.tokens_computed <= own + (head - len(prompt)) * report.batches
    assert (
        ours.plan([(query, each) for each in documents]).tokens_computed == report.tokens_computed
    )


def test_prefix_and_instruction_are_kept_for_later_queries(made) -> None:
    ours = Reranker(made["tied"], device="cpu")
    kept = ours.loop.runner.model.prompts
    ours.rank("one query", DOCUMENTS)
    ours.rank("quite another", DOCUMENTS)
    assert len(kept) == 1
    ours.rank("one query", DOCUMENTS, instruction="Find it")
    assert len(kept) == 2


def test_scores_do_not_depend_on_the_neighbours(tied: Reranker) -> None:
    together = tied.predict(PAIRS)
    alone = torch.stack([tied.predict(pair) for pair in PAIRS])
    assert apart(together, alone) <= 1e-5
    assert apart(tied.predict(PAIRS[::-1]), together.flip(0)) <= 1e-5


# Where and how it is computed.


def test_other_ways_to_compute(made, tied: Reranker) -> None:
    expected = tied.predict(PAIRS)
    for how in ({"dtype": "bfloat16"}, {"quantize": "int8"}):
        other = Reranker(made["tied"], device="cpu", activation_fn=identity, **how)
        scores = other.predict(PAIRS)
        assert scores.dtype == torch.float32
        assert apart(scores, expected) > 0, how
        assert float(torch.corrcoef(torch.stack([scores, expected]))[0, 1]) > 0.95, how


@pytest.mark.timing
def test_in_worker_processes(made, tied: Reranker) -> None:
    with Reranker(made["tied"], device="cpu,cpu", activation_fn=identity) as other:
        assert apart(other.predict(PAIRS), tied.predict(PAIRS)) <= 1e-5


def test_a_closed_one_refuses(made) -> None:
    ours = Reranker(made["tied"], device="cpu")
    ours.close()
    with refusal(DeviceError, what="closed", got="a closed model", remedy="Open it again."):
        ours.predict(PAIRS)


def test_attributes(made, tied: Reranker) -> None:
    folder = str(made["tied"])
    assert tied.name == folder
    assert repr(tied) == f"Reranker({folder!r}, device='cpu', dtype='float32', max_length=4096)"
    with pytest.raises(AttributeError, match="'name' of a Reranker cannot be set; open a new one"):
        tied.name = "x"


def test_the_notice(made, tmp_path: Path) -> None:
    plain = make_reranker(tmp_path / "plain", "tied")
    assert [Reranker(made[kind]).notices for kind in KINDS] == [()] * 3
    (notice,) = Reranker(plain).notices
    assert notice == (
        f"{plain}: has no chat template for pairs, and its name does not say that it is a reranker; "
        "using the template of Qwen3-Reranker"
    )
    (plain / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert Reranker(plain).notices == (notice,)  # a template for conversations is ignored
    (plain / "chat_template.jinja").write_text(TEMPLATE.replace("Judge", "Decide"))
    other = Reranker(plain)
    assert other.notices == ()
    assert other.info.template.prefix == PREFIX.replace("Judge", "Decide")


# Errors.


def test_tokens_without_a_template_are_refused(tmp_path: Path) -> None:
    """As in models whose template is for conversations: nothing says how their texts look."""
    folder = make_reranker(tmp_path / "m-reranker")
    kinds = (
        "sentence_transformers.base.modules.transformer.Transformer",
        "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
    )
    modules = [
        {"idx": i, "name": str(i), "path": "1_LogitScore" if i else "", "type": kind}
        for i, kind in enumerate(kinds)
    ]
    change_file(folder, "modules.json", modules)
    processing = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}
    change_file(folder, "sentence_bert_config.json", processing)
    change_file(folder, "1_LogitScore/config.json", {"true_token_id": 7, "false_token_id": None})
    what = "is not one for pairs, although LogitScore names its own tokens"
    with refusal(ConfigError, what=what, got="true 7, false None"):
        Reranker(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("Judge", "Decide"))
    weights = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(Reranker(folder, device="cpu").info.score_row, weights[7])


def test_what_is_no_pair(tied: Reranker) -> None:
    for pairs, where, what in [
        ("a str", "pairs", "not a list of pairs"),
        ({"q": "d"}, "pairs", "not a list of pairs"),
        (3, "pairs", "not a list of pairs"),
        ([("q", "d"), ("q",)], "pair 1", "not a pair"),
        ([("q", "d", "e")], "pair 0", "not a pair"),
        ([("q", None)], "pair 0", "not a pair"),
        (["q", "d", "e"], "pair 0", "not a pair"),
        ([("q", "d"), "qd"], "pair 1", "not a pair"),
        ([{"q", "d"}], "pair 0", "not a pair"),
    ]:
        with refusal(InputError, where=where, what=what):
            tied.predict(pairs)
    with refusal(InputError, where="query", what="not a string", got="None"):
        tied.rank(None, ["d"])
    with refusal(InputError, where="text 1", what="not a string"):
        tied.rank("q", ["d", 3])
    with refusal(InputError, where="texts", what="a single str, which is not accepted here"):
        tied.rank("q", "d")


def test_surrogates_are_named(tied: Reranker) -> None:
    got = "the lone surrogate U+D800 at character 2"
    with refusal(InputError, where="pair 1: its document", got=got, index=1):
        tied.predict([("q", "d"), ("q", "ab\ud800")])
    with refusal(InputError, where="document 0: its query", got=got):
        tied.rank("ab\ud800", ["d"])


def test_settings_are_checked(made, tied: Reranker) -> None:
    for kwargs, where in [
        ({"instruction": 3}, "instruction"),
        ({"prompt_name": "none"}, "prompt"),
        ({"too_long": "maybe"}, "too_long"),
        ({"batch_size": 0}, "batch_size"),
        ({"report": {}}, "report"),
        ({"show_progress_bar": 3}, "show_progress_bar"),
        ({"apply_softmax": True}, "apply_softmax"),
        ({"device": "cuda"}, "device"),
    ]:
        with refusal(ConfigError, where=where):
            tied.predict(PAIRS, **kwargs)
    for top_k in (0, 1.5):
        with refusal(ConfigError, where="top_k"):
            tied.rank("q", ["d"], top_k)
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        tied.predict(PAIRS, other=1)
    assert Reranker(made["tied"], num_labels=1, trust_remote_code=True).notices == ()
    with refusal(ConfigError, where="num_labels"):
        Reranker(made["tied"], num_labels=2)
    with refusal(ConfigError, where="instruction"):
        Reranker(made["tied"], instruction=3)


def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    folder = make_reranker(tmp_path / "m", "classifier")
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with refusal(InputError, where="pair 0", what="its score is not finite", index=0):
        Reranker(folder, device="cpu").predict(PAIRS)


def test_every_keyword_is_known_to_both_calls(tied: Reranker) -> None:
    """`rank` and `predict` take the same settings."""
    report = Report()
    options = {"instruction": "i", "too_long": "cut", "batch_size": 3, "report": report}
    options |= {"show_progress_bar": False, "activation_fn": identity}
    scores = tied.predict(PAIRS[:2], **options)
    ranked = tied.rank(QUERY, DOCUMENTS[:2], **options)
    assert Counter(each["score"] for each in ranked) == Counter(scores.tolist())
    assert report.texts == 4


# The published model.

RED_PLANET = (
    ("Venus is often called Earth's twin because of its similar size and proximity.", -3.109297752),
    (
        "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
        7.120389938,
    ),
    ("Jupiter, the largest planet in our solar system, has a prominent red spot.", -0.378754616),
    ("Saturn, famous for its rings, is sometimes mistaken for the Red Planet.", 3.541637421),
)


@pytest.mark.weights
def test_log_odds_of_the_published_model() -> None:
    """Those that sentence-transformers' own tests hold it to."""
    try:
        ours = Reranker(
            "Qwen/Qwen3-Reranker-0.6B",
            device="cpu",
            dtype="float32",
            activation_fn=identity,
            local_files_only=True,
        )
    except WeightsError as error:
        pytest.skip(f"Qwen3-Reranker-0.6B is not in the hub's cache: {error.what}")
    query = "Which planet is known as the Red Planet?"
    scores = ours.predict([(query, document) for document, _ in RED_PLANET])
    assert apart(scores, [score for _, score in RED_PLANET]) <= 1e-4
