"""The admin's API against its own OpenAPI document, asked of three live nodes by schemathesis."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from sipha.sandbox import USERS, Sandbox
from tests.system.nodes import restore, started
from tests.system.ua import UserAgent

pytestmark = pytest.mark.system

PREFIX = "127.0.37"

PATIENCE = 20.0
"""Seconds within which a cluster that has said 503 must be able again to do what it is asked."""

CHECKS: Any = (
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
)

KNOWN: Mapping[str, Sequence[str]] = {
    "aor": ["alice@sipha.test", "sip:bob@sipha.test"],
    "identity": ["alice@sipha.test", "bob@sipha.test"],
    "/v1/settings/{name}": ["pings", "preferred", "standby/n1", "standby/n2", "standby/n3"],
    "/v1/nodes/{name}/standby": ["n1", "n2", "n3"],
    "/v1/nodes/{name}/online": ["n1", "n2", "n3"],
}
"""What is there, by the variable of a path, or by the path: no member is removed."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("api"), prefix=PREFIX)
    with started(sandbox):
        restore(sandbox)
        yield sandbox


def test_nodes_answer_as_their_document_says(cluster: Sandbox) -> None:
    ask_everything(cluster, examples=4, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_nodes_answer_many_requests_as_their_document_says(cluster: Sandbox) -> None:
    ask_everything(cluster, examples=60, derandomize=False)


def test_follower_reads_what_was_just_acknowledged(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    follower = next(node for node in cluster.nodes if node is not leader)
    for number in range(20):
        identity = f"fresh{number}@{cluster.domain}"
        body = {"username": f"fresh{number}", "domain": cluster.domain, "password": "x"}
        cluster.request(leader, "POST", "/v1/accounts", body)
        cluster.request(follower, "GET", f"/v1/accounts/{identity}?consistency=linearizable")
        cluster.request(leader, "DELETE", f"/v1/accounts/{identity}")
        with pytest.raises(HTTPError, match="404"):
            cluster.request(follower, "GET", f"/v1/accounts/{identity}?consistency=linearizable")


def test_operator_exports_from_a_follower_what_the_leader_has(cluster: Sandbox, tmp_path: Path) -> None:
    populate(cluster)
    leader = cluster.wait_for_leader()
    follower = next(node for node in cluster.nodes if node is not leader)
    file = tmp_path / "bindings.jsonl"
    command = [str(Path(sys.executable).with_name("siphactl")), "--url", follower.admin]
    subprocess.run([*command, "export", str(file), "--fresh"], check=True, capture_output=True, timeout=60)
    exported = {json.loads(line)["aor"] for line in file.read_text().splitlines()}
    assert exported == {f"sip:{user}@{cluster.domain}" for user in USERS}
    shown = subprocess.run(
        [*command, "bindings", "--address", f"{PREFIX}.100", "--json"], check=True, capture_output=True, timeout=60
    ).stdout
    assert [one["aor"] for one in json.loads(shown)["bindings"]] == [f"sip:{USERS[0]}@{cluster.domain}"]


ENDLESS = {"/v1/events", "/v1/trace/{aor}"}
"""What goes on until the client hangs up; test_events.py follows it, tests/admin/test_trace.py too."""


def ask_everything(cluster: Sandbox, **options: Any) -> None:
    """Have schemathesis think of requests to each operation, about half of them wrong, and check the answers.

    The options are those of hypothesis, which makes the same requests each time if it is not to be random.
    """
    schema = schemathesis.openapi.from_url(f"{cluster.nodes[0].admin}/v1/openapi.json")
    results: list[Any] = list(schema.get_all_operations())
    operations = [operation for result in results if (operation := result.ok()).path not in ENDLESS]
    assert len(operations) > 20
    for operation in operations:
        populate(cluster)
        ask(cluster, operation, **options)
        heal(cluster)


def ask(cluster: Sandbox, operation: Any, *, examples: int, derandomize: bool) -> None:
    """Ask the nodes in turn."""
    admins = cycle(node.admin for node in cluster.nodes)
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        is_right = data.draw(st.booleans())
        case: Any = data.draw(right if is_right else wrong)
        for name in case.path_parameters or {} if is_right else {}:
            known = KNOWN.get(name, KNOWN.get(operation.path, ()))
            if known and data.draw(st.sampled_from([True, True, False])):
                case.path_parameters[name] = quote(data.draw(st.sampled_from(list(known))), safe="")
        end = time.monotonic() + PATIENCE
        while (response := case.call(base_url=next(admins))).status_code == 503 and time.monotonic() < end:
            assert response.headers["retry-after"], "who is told 503 is told when to ask again"
            time.sleep(0.2)
        case.validate_response(response, checks=CHECKS)

    check()


def populate(cluster: Sandbox) -> None:
    """Have accounts, whatever has become of them, and a phone of each."""
    cluster.add_accounts({user: f"{user}-secret" for user in USERS})
    leader = cluster.wait_for_leader()
    for number, user in enumerate(USERS):
        secret = {"password": f"{user}-secret", "auth_name": user}
        cluster.request(leader, "PUT", f"/v1/accounts/{user}@{cluster.domain}", secret)
        if not cluster.request(leader, "GET", f"/v1/bindings?prefix={user}@")["bindings"]:
            phone = UserAgent(user, (cluster.virtual_address, 5060), host=f"{PREFIX}.{100 + number}")
            phone.register()
            phone.close()


def heal(cluster: Sandbox) -> None:
    """Let every node lead again."""
    for node in cluster.nodes:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                cluster.request(cluster.nodes[0], "POST", f"/v1/nodes/{node.name}/online", {})
                break
            except OSError:
                assert time.monotonic() < end, f"{node.name} stays in standby"
                time.sleep(0.2)
    cluster.wait_for_leader()
