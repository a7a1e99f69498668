from __future__ import annotations

import json
from pathlib import Path

import pytest

from sipha.state.binding import BEHIND_NAT
from sipha.state.machine import DamagedMemory
from tests.admin.fakes import NOW, FakeNode
from tests.ctl.operator import Operator


@pytest.fixture(autouse=True)
def _phones(node: FakeNode) -> None:
    node.register("sip:alice@sipha.test", user_agent="Yealink SIP-T46S", cflags=BEHIND_NAT)
    node.register("sip:bob@sipha.test", "sip:bob@127.0.0.2", received="", user_agent="baresip", call_id="two")


def shown(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines()[1:]]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), ["sip:alice@sipha.test", "sip:bob@sipha.test"]),
        (("--prefix", "al"), ["sip:alice@sipha.test"]),
        (("--domain", "alias.test"), ["sip:alice@sipha.test", "sip:bob@sipha.test"]),
        (("--nat",), ["sip:alice@sipha.test"]),
        (("--no-nat",), ["sip:bob@sipha.test"]),
        (("--user-agent", "yealink"), ["sip:alice@sipha.test"]),
        (("--address", "127.0.0.2", "--transport", "udp"), ["sip:bob@sipha.test"]),
        (("--contact", "bob@", "--call-id", "two"), ["sip:bob@sipha.test"]),
        (("--instance", "urn:uuid"), []),
        (("--fresh", "--prefix", "bo"), ["sip:bob@sipha.test"]),
    ],
)
def test_operator_finds_bindings(operator: Operator, words: tuple[str, ...], found: list[str]) -> None:
    result = operator.types("bindings", *words)
    assert result.exit_code == 0, result.stderr
    assert shown(result.stdout) == found
    assert [one["aor"] for one in operator.reads("bindings", *words)["bindings"]] == found


def test_operator_sees_when_a_phone_last_answered_a_ping(operator: Operator, node: FakeNode) -> None:
    node.answered["sip:alice@sipha.test"] = int((NOW - 12.5) * 1000)
    _, alice, bob = operator.types("bindings").stdout.splitlines()
    assert "12 s ago" in alice
    assert "ago" not in bob
    assert "    Answered: a ping of 12 s ago\n" in operator.types("show", "alice@sipha.test").stdout
    assert "Answered" not in operator.types("show", "bob@sipha.test").stdout


def test_operator_is_told_what_is_wrong_with_a_filter(operator: Operator) -> None:
    result = operator.types("bindings", "--address", "here")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "'here' is not an IP address or network" in result.stderr


def test_operator_exports_to_a_file(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "bindings.jsonl"
    result = operator.types("export", str(file))
    assert (result.exit_code, result.stdout) == (0, f"wrote the bindings as of entry 2 to {file}\n")
    assert [json.loads(line)["aor"] for line in file.read_text().splitlines()] == [
        "sip:alice@sipha.test",
        "sip:bob@sipha.test",
    ]
    assert operator.types("export", str(file)).stderr == (
        f"siphactl: {file} exists, and is not overwritten without --force\n"
    )
    assert operator.reads("export", str(file), "--force", "--nat") == {"file": str(file), "index": 2}
    assert len(file.read_text().splitlines()) == 1


def test_name_of_the_file_says_its_format(operator: Operator, tmp_path: Path) -> None:
    for words, head in (
        (["bindings.csv"], "aor,contact,"),
        (["bindings.txt"], '{"aor":'),
        (["bindings.txt2", "--format", "csv"], "aor,contact,"),
    ):
        file = tmp_path / words[0]
        assert operator.types("export", str(file), *words[1:]).exit_code == 0
        assert file.read_text().startswith(head)


def test_operator_pipes_an_export(operator: Operator) -> None:
    result = operator.types("export", "-", "--format", "csv", "--prefix", "bob")
    assert result.exit_code == 0
    assert [line.split(",")[0] for line in result.stdout.splitlines()] == ["aor", "sip:bob@sipha.test"]


def test_export_that_is_cut_short_leaves_no_file(
    node: FakeNode, operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listing() -> None:
        raise DamagedMemory("a record has another hash")

    monkeypatch.setattr(node, "listing", listing)
    result = operator.types("export", str(tmp_path / "bindings.csv"))
    assert result.exit_code == 1
    assert "a record has another hash" in result.stderr
    assert list(tmp_path.iterdir()) == []
