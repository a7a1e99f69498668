from __future__ import annotations

from pathlib import Path

import pytest

from sipha.cluster import founding
from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator

CONFIG = """
[node]
name = "n1"
data_dir = "{directory}/data"
[cluster]
listen = "127.0.0.11:7000"
[[domains]]
name = "sipha.test"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "sipha.toml"
    path.write_text(CONFIG.format(directory=tmp_path))
    return f"--config={path}"


def contents(directory: Path) -> founding.Contents:
    with founding.taken(directory / "data") as disk:
        return founding.status(disk, "n1")


def back_up(node: FakeNode, file: Path) -> None:
    for number in range(100):
        node.register(f"sip:user{number}@sipha.test")
    file.write_bytes(b"".join(node.backup()))


def test_operator_founds_a_cluster_of_one(operator: Operator, config: str, tmp_path: Path) -> None:
    founded = operator.types("cluster", "init", config)
    assert founded.exit_code == 0, founded.stderr
    found = contents(tmp_path)
    assert founded.stdout == f"founded cluster {found.cluster_id}, of which n1 is the only node yet\n"
    assert [(member.name, member.address) for member in found.members] == [("n1", "127.0.0.11:7000")]
    assert operator.network.asked == []


def test_operator_sees_what_a_disk_holds(operator: Operator, config: str) -> None:
    founded = operator.reads("cluster", "init", config)
    seen = operator.reads("disk", config)
    assert (seen["node"], seen["cluster_id"], seen["bindings"]) == ("n1", founded["cluster_id"], 0)
    lines = operator.types("disk", config).stdout.splitlines()
    assert lines[0] == "node: n1"
    assert lines[-1] == "member: n1 127.0.0.11:7000 voter"


def test_operator_restores_a_backup(node: FakeNode, operator: Operator, config: str, tmp_path: Path) -> None:
    back_up(node, tmp_path / "backup")
    restored = operator.types("restore", str(tmp_path / "backup"), config)
    assert restored.exit_code == 0, restored.stderr
    found = contents(tmp_path)
    assert restored.stdout.startswith(f"restored {tmp_path / 'backup'} into cluster {found.cluster_id}, of which n1 is")
    assert found.bindings == 100
    assert found.last_index > node.machine.index


def test_operator_recovers_a_node(node: FakeNode, operator: Operator, config: str, tmp_path: Path) -> None:
    back_up(node, tmp_path / "backup")
    before = operator.reads("restore", str(tmp_path / "backup"), config)["cluster_id"]
    after = operator.reads("recover", "--others-are-off", config)["cluster_id"]
    found = contents(tmp_path)
    assert before != after == found.cluster_id
    assert found.bindings == 100


def test_recover_explains_what_it_needs_to_hear(operator: Operator, config: str, tmp_path: Path) -> None:
    operator.types("cluster", "init", config)
    before = contents(tmp_path)
    refused = operator.types("recover", config)
    assert refused.exit_code == 2
    assert "make sure that they stay off, and repeat this with --others-are-off" in refused.stderr.replace("\n", " ")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("cluster", "init"), "n1 is in cluster {id} already; to begin anew"),
        (("restore", "{other}"), "n1 is in cluster {id} already; to begin anew"),
        (("restore", "{backup}.none"), "can't read the backup {backup}.none: No such file or directory"),
        (("restore", "{config}"), "{config} is not a whole backup"),
    ],
)
def test_refusal_changes_nothing(  # noqa: PLR0917  fixtures
    node: FakeNode, operator: Operator, config: str, tmp_path: Path, words: tuple[str, ...], problem: str
) -> None:
    back_up(node, tmp_path / "backup")
    operator.reads("restore", str(tmp_path / "backup"), config)
    node.register("sip:late@sipha.test")
    back_up(node, tmp_path / "other")
    before = contents(tmp_path)
    names = {name: str(tmp_path / name) for name in ("backup", "other")}
    names |= {"id": before.cluster_id, "config": str(tmp_path / "sipha.toml")}
    refused = operator.types(*(word.format(**names) for word in words), config)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"siphactl: {problem.format(**names)}")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("words", [("recover", "--others-are-off"), ("cluster", "init"), ("restore", "backup")])
def test_witness_doesnt_become_the_only_node(
    operator: Operator, config: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    file = tmp_path / "sipha.toml"
    file.write_text(file.read_text().replace("[cluster]", "[cluster]\nwitness = true"))
    (tmp_path / "data").mkdir()
    refused = operator.types(*words, config)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("siphactl: n1 is a witness, which never serves phones")
    assert not (tmp_path / "data" / "identity").exists()


@pytest.mark.parametrize("words", [("disk",), ("recover", "--others-are-off"), ("cluster", "init")])
def test_running_node_is_left_alone(operator: Operator, config: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    operator.types("cluster", "init", config)
    with founding.taken(tmp_path / "data"):
        refused = operator.types(*words, config)
    assert refused.exit_code == 1
    assert "another process uses the data directory" in refused.stderr


@pytest.mark.parametrize("words", [("disk",), ("recover", "--others-are-off")])
def test_directory_that_isnt_there_is_not_made(
    operator: Operator, config: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    refused = operator.types(*words, config)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"siphactl: can't use the data directory {tmp_path}/data: No such file")
    assert not (tmp_path / "data").exists()


def test_wrong_configuration_is_status_1(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "sipha.toml").write_text("")
    refused = operator.types("disk", "--config", str(tmp_path / "sipha.toml"))
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"siphactl: {tmp_path}/sipha.toml: node: is missing")
