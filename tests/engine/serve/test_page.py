"""`GET /`: the page, as it is sent and in a browser."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from helpers.serving.browser import chromium, prefer, resize
from helpers.serving.servers import running, until
from helpers.small_models import make_reranker
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from lastword import Embedder, Reranker
from lastword.serve.settings import Limits, Settings

QUERY = "when can I take my bike on the train?"
TEXTS = [
    "The museum is free on the first Sunday of the month.",
    "Bicycles are allowed on trains outside rush hour.",
    "Leaves use sunlight to turn water and air into glucose.",
]


def load():
    return Embedder(device="cpu")


# As it is sent.


def test_headers(server):
    page = server.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-cache"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert len(page.content) < 16 << 10
    with server.client() as client:
        head = client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(page.content))
    accepting = server.get("/", headers={"accept": "application/json"})
    assert accepting.content == page.content


def test_the_policy_allows_the_page_and_calls_to_its_server(server):
    page = server.get("/")
    rules = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    for tag in ("style", "script"):
        (inner,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert rules.pop("connect-src") == "'self'"
    assert rules.pop("img-src") == "data:"
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} <= set(rules)
    assert set(rules.values()) == {"'none'"}


def test_nothing_comes_from_elsewhere(server):
    found = []

    class Attributes(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend((tag, *each) for each in attrs if each[0] in ("src", "href", "style"))

    text = server.get("/").text
    Attributes().feed(text)
    assert found == [("link", "href", "data:,")]
    assert not re.search(r"https?:|url\(|@import|\bon[a-z]+=", text)


def test_other_methods(server, model):
    vectors = server.post("/", {"inputs": TEXTS[0]}).json()
    assert len(vectors[0]) == model.dim
    with server.client() as client:
        refused = client.delete("/")
    assert refused.status_code == 405
    assert refused.headers["allow"] == "GET, HEAD, POST"


def test_times_are_those_of_vectors_and_scores(server):
    def answered():
        (line,) = re.findall(
            r"^te_request_duration_count .*", server.get("/metrics").text, re.MULTILINE
        )
        return float(line.split()[1])

    before = answered()
    server.get("/info")
    server.post("/tokenize", {"inputs": TEXTS})
    server.post("/embed", {"inputs": []})
    assert answered() == before
    server.post("/embed", {"inputs": TEXTS})
    assert answered() == before + 1


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server that asks for the key "open sesame"."""
    keys = tmp_path_factory.mktemp("page") / "keys"
    keys.write_text("open sesame\n")
    with running(load, Settings(port=0, key_file=keys)) as found:
        yield found


def test_the_page_needs_no_key_but_what_it_calls_does(locked):
    assert locked.get("/").status_code == 200
    with locked.client() as client:
        assert client.head("/").status_code == 200
        assert client.delete("/").status_code == 401
    for path in ("/metrics", "/info", "/page.html"):
        assert locked.get(path).status_code == 401
    for path in ("/", "/v1/embeddings", "/v1/rerank"):
        assert locked.post(path, {"inputs": "a"}).status_code == 401


# In a browser.


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(browser):
    opened = Opened(browser)
    opened.size(1280)
    yield opened
    refused = [
        each for each in browser.get_log("browser") if "Failed to load" not in each["message"]
    ]
    assert refused == []  # by the policy, or an error of the script
    browser.execute_script("sessionStorage.clear()")
    browser.get("about:blank")


class Opened:
    """The page in a browser, used by its keyboard."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, server, state="Ready"):
        self.driver.get(f"{server.url}/")
        self.shows("state", state)

    def size(self, width):
        resize(self.driver, width)

    def text(self, name):
        return self.driver.find_element(By.ID, name).text

    def shows(self, name, text):
        until(lambda: text in self.text(name), 20)

    def value(self, term):
        """What stands for a term of the lists."""
        lists = self.driver.execute_script(  # at once: they are made anew every two seconds
            "return [...document.querySelectorAll('dl > div')].map(({ children: [dt, dd] }) =>"
            " [dt.textContent, dd.innerText]);"
        )
        return dict(lists)[term].split("\n")

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, name):
        """Press Tab until the focus is on an element, named by its id or its text."""
        for _ in range(20):
            focused = self.driver.switch_to.active_element
            if name in (focused.get_attribute("id"), focused.text):
                return
            self.press(Keys.TAB)
        raise AssertionError(f"{name} is not reached")

    def type(self, name, text):
        self.tab_to(name)
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys("a").key_up(
            Keys.CONTROL
        ).send_keys(text).perform()

    def results(self):
        """The texts with their numbers by name, as they are listed."""
        found = []
        for item in self.driver.find_elements(By.CSS_SELECTOR, "#results li"):
            rows = [each.text.split("\n") for each in item.find_elements(By.CLASS_NAME, "score")]
            numbers = {name: float(value.replace("−", "-")) for name, value in rows}
            found.append((item.find_element(By.CLASS_NAME, "text").text, numbers))
        return found

    def overflow(self):
        """How many pixels the page is wider than the screen, and which elements stick out."""
        return self.driver.execute_script(
            "const wide = document.documentElement.clientWidth;"
            "const out = [...document.querySelectorAll('body *')].filter((each) =>"
            " each.getBoundingClientRect().right > wide + 0.5).map((each) => each.outerHTML);"
            "return [document.documentElement.scrollWidth - wide, out];"
        )


def test_compares_by_keyboard(page, server, model):
    page.open(server)
    page.type("query", QUERY)
    page.type("texts", "\n".join([*TEXTS[:2], "  ", TEXTS[2]]))
    page.tab_to("Compare")
    page.press(Keys.ENTER)
    page.shows("try-status", "3 ranked")
    wanted = model.similarity(model.encode_query([QUERY]), model.encode_document(TEXTS))[0]
    order = wanted.argsort(descending=True).tolist()
    assert order[0] == 1
    found = page.results()
    assert [text for text, _ in found] == [TEXTS[i] for i in order]
    for (_, numbers), i in zip(found, order, strict=True):
        assert numbers == {"similarity": pytest.approx(wanted[i].item(), abs=6e-4)}
    bars = page.driver.find_elements(By.CSS_SELECTOR, "#results .bar")
    shares = [
        bar.find_element(By.TAG_NAME, "div").size["width"] / bar.size["width"] for bar in bars
    ]
    assert shares == pytest.approx([max(0, wanted[i].item()) for i in order], abs=0.02)
    first = ", ".join(f"{x:.4f}" for x in model.encode_query([QUERY])[0, :6].tolist())
    shown = page.driver.find_element(By.CSS_SELECTOR, "#results > code").text
    assert shown == f"[{first}, …], 256 numbers, length 1.0000"
    page.tab_to("Vector")  # of the best text
    page.press(Keys.ENTER)
    best = page.driver.find_element(By.CSS_SELECTOR, "#results li code")
    numbers = [float(x) for x in re.findall(r"-?\d\.\d+", best.text)[:6]]
    assert numbers == pytest.approx(model.encode_document(TEXTS[1:2])[0, :6].tolist(), abs=1e-4)


def test_enter_in_the_query_and_in_the_texts(page, server):
    page.open(server)
    page.type("query", QUERY)
    page.press(Keys.ENTER)
    page.shows("try-status", "4 ranked")
    page.type("texts", TEXTS[1])
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(
        Keys.CONTROL
    ).perform()
    page.shows("try-status", "1 ranked")
    assert [text for text, _ in page.results()] == [TEXTS[1]]


def test_shows_what_the_server_does(page, server, model):
    page.open(server)
    assert page.value("Dimensions") == ["256"]
    assert page.value("Device") == ["cpu"]
    assert page.value("Numbers") == ["float32"]
    assert page.value("Median time to answer") == ["–", "no requests lately"]
    assert page.value("Texts waiting") == ["0", "the queue is empty"]
    page.tab_to("Limits")
    page.press(Keys.ENTER)
    assert page.value("max inputs") == ["2,048"]
    before = server.service.metrics.tokens
    for number in range(5):
        server.post("/embed", {"inputs": [f"one text, number {number}", "another"]})
    added = sum(map(len, model.token_ids([f"one text, number {n}" for n in range(5)])))
    added += 5 * len(model.token_ids(["another"])[0])
    all_tokens, all_texts = before + added, server.service.metrics.asked.total()
    until(lambda: page.value("Requested") == [f"{all_tokens:,}"], 20)
    assert page.value("Texts per second")[1] == f"{all_texts:,} in all"
    assert float(page.value("Texts per second")[0]) > 0
    assert re.fullmatch(r"[\d.]+ m?s", page.value("Median time to answer")[0])
    assert re.fullmatch(r"99 % within [\d.]+ m?s", page.value("Median time to answer")[1])
    report = server.service.device.report
    assert page.value("Computed")[0].startswith(f"{report.tokens_computed:,} (")


def test_the_bar_of_tokens(page):
    with running(load) as server:
        shared = "a sentence that begins alike in each of these texts and ends with "
        answer = server.post(
            "/embed", {"inputs": [f"{shared}{n}" for n in "one two three".split()]}
        )
        requested, computed = (
            int(answer.headers[f"x-lastword-{name}"]) for name in ("tokens", "computed-tokens")
        )
        assert computed < requested
        page.open(server)
        share = round(100 * computed / requested)
        assert page.value("Computed") == [f"{computed} ({share}%)"]
        saved = requested - computed
        assert page.value("Shared with other texts") == [
            f"{saved} ({round(100 * saved / requested)}%)"
        ]
        bar = page.driver.find_element(By.CSS_SELECTOR, "#token-bar div")
        assert bar.value_of_css_property("width") != "0px"


def rank_by_keyboard(page, reranker):
    """Compare TEXTS with QUERY and check their order; return the page's numbers and the score of each text."""
    page.type("query", QUERY)
    page.type("texts", "\n".join(TEXTS))
    page.tab_to("Compare")
    page.press(Keys.ENTER)
    page.shows("try-status", "3 ranked")
    ranked, found = reranker.rank(QUERY, TEXTS), page.results()
    assert [text for text, _ in found] == [TEXTS[each["corpus_id"]] for each in ranked]
    return [
        (numbers, pytest.approx(each["score"], abs=6e-4))
        for (_, numbers), each in zip(found, ranked, strict=True)
    ]


def test_a_reranker_scores_too(page, tmp_path):
    folder = make_reranker(tmp_path / "small-reranker")
    with running(load, load_reranker=lambda: Reranker(folder, device="cpu")) as server:
        page.open(server)
        assert page.value("Reranker")[0].startswith("small-reranker")
        for numbers, score in rank_by_keyboard(page, Reranker(folder, device="cpu")):
            assert numbers["reranker"] == score
        page.driver.find_element(By.ID, "query").click()
        page.tab_to("rerank")
        page.press(Keys.SPACE)
        page.tab_to("Compare")
        page.press(Keys.ENTER)
        until(lambda: page.results() and "reranker" not in page.results()[0][1], 20)
        assert page.results()[0][0] == TEXTS[1]


def test_a_reranker_alone_only_scores(page, tmp_path):
    folder = make_reranker(tmp_path / "small-reranker")
    with running(lambda: Reranker(folder, device="cpu")) as server:
        page.open(server)
        assert page.text("model") == "small-reranker"
        until(lambda: page.text("try") == "Score", 20)
        assert not page.driver.find_element(By.ID, "rerank-box").is_displayed()
        for numbers, score in rank_by_keyboard(page, Reranker(folder, device="cpu")):
            assert numbers == {"reranker": score}
        assert page.driver.find_elements(By.CSS_SELECTOR, "#results code") == []
        until(lambda: page.value("Texts per second")[1] == "3 in all", 20)


def test_asks_for_a_key(page, locked):
    page.open(locked, "Needs an API key")
    assert page.driver.switch_to.active_element.get_attribute("id") == "key"
    page.press("wrong", Keys.ENTER)
    page.shows("key-error", "The server does not accept this key.")
    page.type("key", "open sesame")
    page.tab_to("Use key")
    page.press(Keys.ENTER)
    page.shows("state", "Ready")
    assert not page.driver.find_element(By.ID, "key").is_displayed()
    assert page.driver.switch_to.active_element.get_attribute("id") == "query"
    page.press(Keys.ENTER)
    page.shows("try-status", "4 ranked")
    page.driver.refresh()
    page.shows("state", "Ready")  # with the same key
    kept = page.driver.execute_script(
        "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
    )
    assert kept == [["open sesame"], 0, ""]
    locked.service.keys._hashes = []  # as if the file had been changed
    page.shows("state", "Needs an API key")
    page.driver.get_log("browser")


def test_errors_in_words(page):
    limits = Limits(max_characters=60)
    with running(load, Settings(port=0, limits=limits)) as server:
        page.open(server)

        def compare(*texts):
            page.driver.find_element(By.ID, "query").click()
            page.type("texts", "\n".join(texts))
            page.tab_to("Compare")
            page.press(Keys.ENTER)

        compare("short", "long " * 20)
        page.shows("try-error", "Refused: input 1: ")
        compare("short")
        page.shows("try-status", "1 ranked")
        assert page.text("try-error") == ""
        server.service.in_hand = limits.max_requests
        compare("short")
        page.shows("try-error", "The server is busy: too much is waiting already. Try again in ")
        assert page.results() == []
        server.service.in_hand = 0
        server.service.draining = True
        compare("short")
        page.shows("try-error", "Not possible now: the server is stopping. Try again in 2 s.")
        page.shows("state", "the server is stopping")
    page.shows("state", "The server does not answer. Is it still running?")
    assert not page.driver.find_element(By.ID, "now").is_displayed()  # no stale figures
    compare("short")
    page.shows("try-error", "The server does not answer.")


def test_while_the_model_loads_and_empty_fields(page):
    ready = []

    def slowly():
        until(lambda: ready)
        return load()

    with running(slowly, wait=False) as server:
        page.open(server, "the model is being loaded")
        assert page.text("try-status") == "Nothing compared yet."
        ready.append(1)
        page.shows("state", "Ready")
        page.type("query", Keys.DELETE)
        page.press(Keys.ENTER)
        query = page.driver.find_element(By.ID, "query")
        assert query.get_property("validationMessage")
        assert page.driver.switch_to.active_element == query
        assert page.text("try-status") == "Nothing compared yet."


def luminance(colour):
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


# Of each text: its element, its colour and the colour behind it.
COLOURS = """
const behind = (element) => {
  const colour = getComputedStyle(element).backgroundColor;
  return colour === "rgba(0, 0, 0, 0)" ? behind(element.parentElement) : colour;
};
return [...document.querySelectorAll(
  "body, h1, h2, dt, dd, small, button, input, textarea, summary, code, .soft, .text, #state, .score"
)].map((each) => [each.tagName, each.outerHTML, getComputedStyle(each).color, behind(each)]);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_narrow_and_wide_light_and_dark(page, server, width, scheme):
    page.size(width)
    prefer(page.driver, scheme)
    page.open(server)
    assert page.overflow() == [0, []]
    page.type("query", "x" * 300)
    page.type("texts", "\n".join([*TEXTS, "y" * 300]))
    page.tab_to("Compare")
    page.press(Keys.ENTER)
    page.shows("try-status", "4 ranked")
    page.tab_to("Vector")
    page.press(Keys.ENTER)
    page.tab_to("Limits")
    page.press(Keys.ENTER)
    assert page.overflow() == [0, []]
    colours = page.driver.execute_script(COLOURS)
    assert len(colours) > 50
    for tag, html, *pair in colours:
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (html, pair)
        if tag != "BUTTON":
            assert (luminance(pair[1]) > 0.5) is (scheme == "light")


def test_every_field_has_a_label_and_the_focus_is_seen(page, server):
    page.open(server)
    for each in page.driver.find_elements(By.CSS_SELECTOR, "input, textarea, button"):
        assert each.accessible_name or not each.is_displayed()
    assert page.driver.find_element(By.ID, "try-error").get_attribute("role") == "alert"
    assert page.driver.find_element(By.ID, "try-status").get_attribute("role") == "status"
    order = []
    for _ in range(4):
        page.press(Keys.TAB)
        focused = page.driver.switch_to.active_element
        order.append(focused.get_attribute("id") or focused.text)
        assert focused.value_of_css_property("outline-style") == "solid"
    assert order == ["query", "texts", "Compare", "Limits"]
