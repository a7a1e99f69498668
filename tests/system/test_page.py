"""The page in Debian's Chromium, served by real nodes: what an operator sees there, and does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sipha.sandbox import Sandbox, SandboxNode
from tests.system.conftest import wait_until
from tests.system.nodes import restore, started
from tests.system.ua import UserAgent

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(900)]

PREFIX = "127.0.38"
USERS = ("alice", "bob")
PATIENCE = 60.0
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
"""A User-Agent of a phone that wants to be more."""

TOKEN = "sipha_read_secret"


class Page:
    """The page in a browser, as who looks at it sees it."""

    def __init__(self, browser: Chrome, artefacts: Path) -> None:
        self.browser = browser
        self.artefacts = artefacts

    def open(self, node: SandboxNode) -> None:
        self.browser.get(f"{node.admin}/")

    def text(self, selector: str) -> str:
        """What an element shows, empty if it is hidden."""
        return self.browser.find_element(By.CSS_SELECTOR, selector).text

    def count(self, selector: str) -> int:
        return len(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds of what may be drawn anew at any time."""

        def holds() -> object:
            try:
                return condition()
            except StaleElementReferenceException:
                return False

        try:
            wait_until(holds, what, PATIENCE)
        except AssertionError:
            self.keep("failure")
            raise

    def press(self, selector: str) -> None:
        """Press a button by the keyboard."""

        def pressed() -> bool:
            self.browser.find_element(By.CSS_SELECTOR, selector).send_keys(Keys.ENTER)
            return True

        self.wait(pressed, f"{selector} to stand still")

    def resize(self, width: int, height: int, scheme: str) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def keep(self, name: str, width: int = 1280, scheme: str = "light") -> int:
        """Keep a picture of the whole page, and return how wide that is."""
        self.resize(width, 900, scheme)
        size = self.browser.execute_script("const d = document.documentElement; return [d.scrollWidth, d.scrollHeight]")
        self.resize(width, size[1], scheme)
        self.browser.save_screenshot(str(self.artefacts / f"{name}.png"))
        self.resize(1280, 900, "light")
        return int(size[0])

    def complaints(self) -> list[str]:
        """What the browser has refused, or what has failed, since the last look."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    # Leases that outlast whatever else this machine does meanwhile, such as starting a browser.
    cluster = Sandbox(
        tmp_path_factory.mktemp("page"),
        prefix=PREFIX,
        cluster="heartbeat = 0.2\nelection_min = 4.0\nelection_max = 8.0",
    )
    with started(cluster, *USERS):
        yield cluster


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("Debian's chromium and chromium-driver are not installed; make test-long installs them")
    options = ChromeOptions()
    options.binary_location = str(programs[0])
    for word in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(word)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has none for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(str(programs[1])))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser: Chrome, tmp_path: Path) -> Iterator[Page]:
    artefacts = Path(os.environ.get("SIPHA_ARTEFACTS") or tmp_path)
    artefacts.mkdir(parents=True, exist_ok=True)
    yield Page(browser, artefacts)
    browser.get("about:blank")


@pytest.fixture
def phones(cluster: Sandbox) -> Iterator[list[UserAgent]]:
    """Alice's phone, and bob's, which is hostile and takes itself to be at an address behind NAT."""
    restore(cluster)
    server = (cluster.virtual_address, 5060)
    alice = UserAgent("alice", server, host=f"{PREFIX}.150")
    bob = UserAgent("bob", server, host=f"{PREFIX}.151", contact="sip:bob@10.1.2.3:5062")
    for phone, name in ((alice, "Phone/1"), (bob, HOSTILE)):
        headers = [f"User-Agent: {name}", "Expires: 600"]
        phone.request("REGISTER", f"sip:{phone.domain}", to=f"<{phone.aor}>", headers=headers)
        phone.expect(401, within=PATIENCE)
        phone.authorize()
        phone.expect(200, within=PATIENCE)
    yield [alice, bob]
    alice.close()
    bob.close()


def follower(cluster: Sandbox) -> SandboxNode:
    leader = cluster.wait_for_leader()
    return next(node for node in cluster.nodes if node is not leader)


def row(node: SandboxNode) -> str:
    return f'#nodes tr[data-node="{node.name}"]'


@pytest.mark.usefixtures("phones")
def test_operator_finds_phone_whose_user_agent_is_hostile(cluster: Sandbox, page: Page) -> None:
    page.open(follower(cluster))
    page.wait(lambda: page.count("#nodes tr") == 3, "the nodes")
    page.browser.find_element(By.ID, "query").send_keys("bob", Keys.ENTER)
    page.wait(lambda: page.count("#hits tr") == 1, "the phone")
    assert HOSTILE in page.text("#hits tr")
    page.press("#hits button")
    page.wait(lambda: page.count("#history li"), "its history")
    facts = page.text("#phone-bindings")
    assert f"seen at {PREFIX}.151:" in facts
    assert "takes itself to be at 10.1.2.3:5062" in facts
    assert "none answered yet" in facts, "the phone doesn't answer pings"
    assert HOSTILE in facts
    assert HOSTILE in page.text("#history")
    assert page.count("img, body script") == 0, "what a stranger writes is text"
    assert page.browser.title.endswith("· sipha")
    assert page.complaints() == []
    page.wait(lambda: page.text("#lease").endswith(" s"), "the lease of who leads")
    page.keep("light")
    page.keep("dark", scheme="dark")
    assert page.keep("narrow", width=390) <= 390, "nothing sticks out of a phone's screen"
    page.browser.find_element(By.ID, "query").send_keys("-nobody", Keys.ENTER)
    page.wait(lambda: "None matches" in page.text("#found"), "nothing to be found")


def test_page_shows_who_leads_when_the_leader_dies(cluster: Sandbox, page: Page) -> None:
    restore(cluster)
    leader = cluster.wait_for_leader()
    page.open(follower(cluster))
    page.wait(lambda: page.text("#leader") == page.text("#vip") == leader.name, "the leader")
    page.wait(lambda: page.text("#lease-note").startswith(f"left to {leader.name}"), "its lease")
    page.wait(lambda: page.text("#plots-note") == f"{leader.name}, the last two minutes", "what it counts")
    assert "ask who leads" not in page.text("#nodes")
    cluster.kill(leader)
    new = cluster.wait_for_leader()
    page.wait(lambda: page.text("#leader") == page.text("#vip") == new.name, "the new leader")
    page.wait(lambda: "not connected" in page.text(row(leader)), "the dead node")
    elected = '#timeline li[data-kind="leader-elected"]'
    page.wait(lambda: new.name in page.text(elected), "the election")
    page.keep("failover")


def test_page_says_when_its_node_is_gone_and_goes_on_when_it_is_back(cluster: Sandbox, page: Page) -> None:
    restore(cluster)
    node = follower(cluster)
    page.open(node)
    page.wait(lambda: page.text("#link") == "live", "the page")
    cluster.kill(node)
    page.wait(lambda: f"{node.name} doesn't answer since" in page.text("#cut-off"), "the page to say so")
    others = {other.admin for other in cluster.nodes if other is not node}
    links = page.browser.find_elements(By.CSS_SELECTOR, "#cut-off a")
    assert {str(link.get_attribute("href")).rstrip("/") for link in links} == others
    page.keep("cut-off")
    cluster.start_node(node)
    page.wait(lambda: page.text("#link") == "live" and not page.text("#cut-off"), "the page to go on")


def test_page_says_when_its_node_hears_nobody(cluster: Sandbox, page: Page) -> None:
    restore(cluster)
    node = follower(cluster)
    page.open(node)
    page.wait(lambda: page.text("#link") == "live", "the page")
    for other in cluster.nodes:
        if other is not node:
            cluster.kill(other)
    page.wait(lambda: f"{node.name} is cut off from who leads" in page.text("#cut-off"), "the page to say so")
    page.wait(lambda: page.text("#leader") == "nobody known", "no leader")


def test_operator_puts_node_in_standby_and_brings_it_online(cluster: Sandbox, page: Page) -> None:
    restore(cluster)
    node = follower(cluster)
    page.open(node)
    page.wait(lambda: page.count("#nodes tr") == 3, "the nodes")
    page.press(f"{row(node)} button")
    page.wait(lambda: page.text("#confirm-title") == f"Put {node.name} in standby?", "the question")
    page.keep("confirm")
    page.press('#confirm button[value="cancel"]')
    page.wait(lambda: page.count("dialog[open]") == 0, "the question to go")
    assert "standby" not in page.text(f"{row(node)} td")
    page.press(f"{row(node)} button")
    page.press("#confirm-yes")
    page.wait(lambda: f"{node.name} is in standby" in page.text("#outcome"), "it to be done")
    page.wait(lambda: "standby" in page.text(f"{row(node)} td"), "the node in standby")
    page.press(f"{row(node)} button")
    page.press("#confirm-yes")
    page.wait(lambda: f"{node.name} is online" in page.text("#outcome"), "it to be done")


def test_operator_drills(cluster: Sandbox, page: Page) -> None:
    restore(cluster)
    leader = cluster.wait_for_leader()
    page.open(leader)
    page.wait(lambda: page.text("#leader") == leader.name, "the leader")
    page.wait(lambda: page.count("#timeline li"), "what has happened before")
    page.press("#drill")
    page.wait(lambda: f"Hand leadership on from {leader.name}?" in page.text("#confirm"), "the question")
    page.press("#confirm-yes")
    page.wait(lambda: " leads. " in page.text("#outcome"), "it to be done")
    told = page.text("#outcome")
    assert not told.startswith(leader.name)
    assert f" s from lease-lost at {leader.name} until it saw {told.split()[0]} elected." in told
    page.keep("drill")


class Guarded(Sandbox):
    """A node that asks who asks."""

    def administration(self, node: SandboxNode) -> str:
        digest = sha256(TOKEN.encode()).hexdigest()
        token = f'[[admin.tokens]]\nname = "desk"\nrole = "read"\nsha256 = "{digest}"\n'
        return f"{super().administration(node)}\n{token}"


def test_page_asks_for_a_token_and_keeps_it_in_its_tab(browser: Chrome, page: Page, tmp_path: Path) -> None:
    cluster = Guarded(tmp_path / "cluster", prefix="127.0.39", size=1)
    cluster.found()
    (node,) = cluster.nodes
    cluster.start_node(node)
    try:
        wait_until(lambda: opened(page, node), "the page", PATIENCE)
        page.wait(lambda: page.count("#sign-in[open]"), "the page to ask")
        page.keep("sign-in")
        for token, answer in (("wrong", "the token is none of this node's"), (TOKEN, "")):
            page.browser.find_element(By.ID, "token").send_keys(token, Keys.ENTER)
            page.wait(lambda answer=answer: answer in page.text("#sign-in-why"), "an answer")  # type: ignore[misc]
        page.wait(lambda: page.text("#leader") == node.name, "the node")
        page.wait(lambda: page.count("#timeline li"), "what it tells")
        page.press(f"{row(node)} button")
        page.press("#confirm-yes")
        page.wait(lambda: "this needs the role operate, and desk has read" in page.text("#outcome"), "the refusal")
        kept = browser.execute_script("return [localStorage.length, document.cookie, sessionStorage.length]")
        assert kept == [0, "", 1]
    finally:
        cluster.stop()


def opened(page: Page, node: SandboxNode) -> bool:
    try:
        page.open(node)
    except WebDriverException:  # the node has yet to listen
        return False
    return page.browser.title == "sipha"
