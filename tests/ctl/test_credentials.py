from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from sipha.admin.access import Access, Caller, Role, Token
from sipha.admin.client import AdminError, Bearer
from sipha.cluster import authority
from sipha.ctl.credentials import Credentials
from tests.admin.fakes import Console, FakeNode
from tests.ctl.operator import Operator

TOKEN = "sipha_secret"


@pytest.fixture
def operator() -> Operator:
    operator = Operator({"127.0.0.1:8080": FakeNode()})
    access = Access([Token(sha256(TOKEN.encode()).digest(), Caller("ops", Role.READ))])
    operator.network.consoles["127.0.0.1:8080"] = Console(FakeNode(), access=access)
    return operator


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


class TestToken:
    def test_operator_without_one_is_told_so(self, operator: Operator) -> None:
        result = operator.types("status")
        assert result.exit_code == 1
        assert result.stderr.startswith("siphactl: say who you are: send Authorization: Bearer and a token")

    def test_operator_shows_it_in_whichever_way(self, operator: Operator, file: Path) -> None:
        for words, env in (
            (("--token", TOKEN, "status"), {}),
            (("status", "--token", TOKEN), {"SIPHA_TOKEN": "other"}),
            (("status", "--token-file", str(file)), {"SIPHA_TOKEN": "other"}),
            (("--token-file", str(file), "status"), {"SIPHA_TOKEN_FILE": "/nowhere"}),
            (("status",), {"SIPHA_TOKEN": TOKEN}),
            (("status",), {"SIPHA_TOKEN_FILE": str(file)}),
        ):
            assert operator.types(*words, env=env).exit_code == 0
        assert operator.types("--token", "other", "status", env={"SIPHA_TOKEN": TOKEN}).exit_code == 1

    def test_operator_is_told_which_role_is_needed(self, operator: Operator) -> None:
        result = operator.types("transfer", "--token", TOKEN)
        assert (result.exit_code, result.stderr) == (1, "siphactl: this needs the role operate, and ops has read\n")

    def test_token_goes_nowhere_in_the_clear(self, operator: Operator) -> None:
        for url in ("http://192.0.2.1:8080", "http://sipha.test:8080", "http://localhost.sipha.test:8080"):
            result = operator.types("status", "--url", url, "--token", TOKEN)
            assert result.exit_code == 1
            assert f"{url} would be told the token in the clear; write https://" in result.stderr
        assert operator.network.asked == []

    @pytest.mark.parametrize("content", [b"", b"\n", b"a b", b"\xff", b"a\nb", "tökén".encode()])
    def test_file_without_one_is_refused(self, operator: Operator, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        result = operator.types("status", "--token-file", str(file))
        assert result.exit_code == 1
        assert result.stderr == f"siphactl: {file} doesn't hold a token and nothing else; siphactl token makes one\n"

    def test_file_that_is_missing_is_named(self, operator: Operator) -> None:
        result = operator.types("status", "--token-file", "/nowhere")
        assert result.stderr == "siphactl: /nowhere can't be read: No such file or directory\n"

    def test_two_are_too_many(self, operator: Operator, file: Path) -> None:
        assert operator.types("status", "--token", TOKEN, "--token-file", str(file)).exit_code == 2


def test_agent_leaves_the_headers_of_others_alone() -> None:
    class Agent:
        def request(self, method: bytes, uri: bytes, headers: Headers, bodyProducer: object = None) -> Deferred[None]:
            asked.append((uri, headers))
            return Deferred()

    asked: list[tuple[bytes, Headers]] = []
    given = Headers({"X": ["y"]})
    agent = Bearer(Agent(), TOKEN)  # type: ignore[arg-type]
    for uri in (b"https://sipha.test/", b"http://localhost/", b"http://127.0.0.9:1/", b"http://[::1]:8080/"):
        agent.request(b"GET", uri, given)
    assert len(asked) == 4
    assert all(headers.getRawHeaders("Authorization") == [f"Bearer {TOKEN}"] for _, headers in asked)
    assert not given.hasHeader("Authorization")
    refused: list[Failure] = []
    agent.request(b"GET", b"http://192.0.2.1/", given).addErrback(refused.append)
    assert refused[0].check(AdminError)
    assert TOKEN not in str(refused[0].value)
    assert len(asked) == 4


class TestCertificate:
    @pytest.fixture
    def seen(self, operator: Operator) -> list[Credentials]:
        """What commands show; nobody is asked."""
        seen: list[Credentials] = []
        operator.run = lambda _, shown: seen.append(shown)
        return seen

    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, str]:
        now = datetime.now(UTC)
        own = authority.found("sipha", now)
        alice = authority.issue_operator(own, "alice", now)
        for name, data in (("cacert", own.certificate), ("cert", alice.certificate), ("key", alice.key)):
            (tmp_path / name).write_bytes(data)
        return {name: str(tmp_path / name) for name in ("cacert", "cert", "key")}

    def test_operator_names_files(self, operator: Operator, seen: list[Credentials], files: dict[str, str]) -> None:
        words = [word for name, path in files.items() for word in (f"--{name}", path)]
        env = {f"SIPHA_{name.upper()}": path for name, path in files.items()}
        assert operator.types("status", *words).exit_code == 0
        assert operator.types("status", env=env).exit_code == 0
        wanted = Credentials("", (Path(files["cacert"]),), (Path(files["cert"]), Path(files["key"])))
        assert seen == [wanted, wanted]

    @pytest.mark.parametrize(
        ("words", "status", "problem"),
        [
            (("--cert", "{cert}"), 2, "--cert and --key go together"),
            (("--key", "{key}"), 2, "--cert and --key go together"),
            (("--cert", "{cert}", "--key", "/nowhere"), 1, "/nowhere can't be read: No such file"),
            (("--cacert", "{key}"), 1, "{key} holds no certificate in PEM"),
            (("--cert", "{cacert}", "--key", "{key}"), 1, "{key} is not the key of {cacert}"),
        ],
    )
    def test_mistake_is_explained(  # noqa: PLR0917
        self,
        operator: Operator,
        seen: list[Credentials],
        files: dict[str, str],
        words: tuple[str, ...],
        status: int,
        problem: str,
    ) -> None:
        result = operator.types("status", *(word.format(**files) for word in words))
        assert result.exit_code == status
        assert problem.format(**files) in result.stderr
        assert seen == []
