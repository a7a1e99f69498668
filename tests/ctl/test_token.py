from __future__ import annotations

import json
import tomllib
from hashlib import sha256

from click.testing import CliRunner, Result

from sipha import config
from sipha.ctl import cli
from sipha.ctl.session import Session


def types(*words: str) -> Result:
    return CliRunner().invoke(cli, words, obj=Session())


def test_operator_makes_a_token_and_what_to_configure() -> None:
    result = types("token", "grafana", "--role", "read")
    assert result.exit_code == 0
    token, _, rest = result.stdout.partition("\n")
    (told,) = tomllib.loads(rest)["admin"]["tokens"]
    assert told == {"name": "grafana", "role": "read", "sha256": sha256(token.encode()).hexdigest()}
    assert config.AdminToken(**told)
    assert token.startswith("sipha_")
    assert len(token) == len("sipha_") + 43
    assert token not in rest
    assert types("token", "grafana", "--role", "read").stdout != result.stdout


def test_program_makes_a_token() -> None:
    made = json.loads(types("token", "ci", "--role", "admin", "--json").stdout)
    assert made.pop("sha256") == sha256(made.pop("token").encode()).hexdigest()
    assert made == {"name": "ci", "role": "admin"}


def test_mistake_is_explained() -> None:
    assert "'a b' is not a name" in types("token", "a b", "--role", "read").stderr
    assert types("token", "a b", "--role", "read").exit_code == 2
    assert types("token", "a").exit_code == 2
    assert types("token", "a", "--role", "root").exit_code == 2
