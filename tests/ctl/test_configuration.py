from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sipha.cluster import authority
from sipha.ctl import cli
from sipha.errors import ConfigError
from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator

GOOD = '[node]\nname = "a"\n[[domains]]\nname = "sipha.test"\n'


def check(tmp_path: Path, text: str, *options: str) -> Result:
    path = tmp_path / "sipha.toml"
    path.write_text(text)
    return CliRunner().invoke(cli, ["check", *options, str(path)])


class TestCheck:
    def test_sound_file_can_be_used(self, tmp_path: Path) -> None:
        result = check(tmp_path, GOOD)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == f"{tmp_path / 'sipha.toml'} can be used\n"

    def test_all_faults_are_told(self, tmp_path: Path) -> None:
        result = check(tmp_path, GOOD + "[sip]\nprt = 1\nt1 = 0\n[admin]\nlisten = 'here'\n")
        assert (result.exit_code, result.stdout) == (1, "")
        path = tmp_path / "sipha.toml"
        assert [line.removeprefix(f"{path}: ").partition(":")[0] for line in result.stderr.splitlines()] == [
            "sip.prt",
            "sip.t1",
            "admin.listen",
        ]

    def test_line_that_isnt_toml_is_told(self, tmp_path: Path) -> None:
        result = check(tmp_path, GOOD + "[sip\n")
        assert result.exit_code == 1
        assert "sipha.toml: line 5, column 5: not TOML" in result.stderr

    def test_file_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(cli, ["check", str(tmp_path / "none.toml")])
        assert result.exit_code == 1
        assert result.stderr == f"{tmp_path / 'none.toml'}: can't be read: No such file or directory\n"

    def test_what_is_odd_is_a_warning(self, tmp_path: Path) -> None:
        result = check(tmp_path, GOOD + "[nat]\nping_interval = 60\n")
        assert result.exit_code == 0
        assert "sipha.toml: warning: nat.ping_interval: many NATs forget a phone after 30 s" in result.stderr
        assert "can be used" in result.stdout

    def test_programs_get_json(self, tmp_path: Path) -> None:
        result = check(tmp_path, GOOD + "[log]\nlevel = 'loud'\n[cluster]\nwitness = true\n", "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert found["file"] == str(tmp_path / "sipha.toml")
        assert [fault.partition(":")[0] for fault in found["faults"]] == ["log.level"]

    def test_certificates_are_looked_at(self, tmp_path: Path) -> None:
        now = datetime.now(UTC)
        own = authority.found("sipha", now)
        issued = authority.issue(own, "a", now)
        for name, content in (("ca", own.certificate), ("certificate", issued.certificate), ("key", issued.key)):
            (tmp_path / name).write_bytes(content)
        files = "[cluster]\n" + "".join(f'{name} = "{tmp_path}/{name}"\n' for name in ("ca", "certificate", "key"))
        assert check(tmp_path, GOOD + files).exit_code == 0
        result = check(tmp_path, GOOD.replace('"a"', '"b"') + files)
        assert result.exit_code == 1
        assert "is not the certificate of b.sipha.sipha" in result.stderr
        (tmp_path / "key").unlink()
        assert "key can't be read" in check(tmp_path, GOOD + files).stderr

    def test_hook_that_cant_be_run_is_told(self, tmp_path: Path) -> None:
        hook = tmp_path / "hook"
        text = GOOD + f'[virtual_address]\nmode = "hook"\nhook = "{hook}"\n'
        assert "hook can't be executed" in check(tmp_path, text).stderr
        hook.touch(0o755)
        assert check(tmp_path, text).exit_code == 0


def test_operator_sees_and_sets_the_level_of_the_log() -> None:
    operator = Operator({"127.0.0.1:8080": (node := FakeNode("n1"))})
    assert operator.types("log-level").stdout == "the log shows info and above\n"
    assert operator.reads("log-level", "debug") == {"level": "debug"}
    assert node.level == "debug"


class TestReload:
    @pytest.fixture
    def node(self) -> FakeNode:
        return FakeNode("n1")

    def test_operator_sees_what_has_changed(self, node: FakeNode) -> None:
        result = Operator({"127.0.0.1:8080": node}).types("reload")
        assert result.exit_code == 0
        assert result.stdout == "loaded /etc/sipha/sipha.toml: changed sip.port, domains\n"

    def test_program_gets_json(self, node: FakeNode) -> None:
        assert Operator({"127.0.0.1:8080": node}).reads("reload") == {
            "file": "/etc/sipha/sipha.toml",
            "generation": 2,
            "changed": ["sip.port", "domains"],
        }

    def test_operator_is_told_why_it_was_refused(self, node: FakeNode) -> None:
        node.refusal = ConfigError("/etc/sipha/sipha.toml: line 3, column 7: not TOML")
        result = Operator({"127.0.0.1:8080": node}).types("reload")
        assert result.exit_code == 1
        assert result.stderr == "siphactl: /etc/sipha/sipha.toml: line 3, column 7: not TOML\n"
