"""What the guard reads in the configuration, by itself: it doesn't take the daemon's word for it."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import NamedTuple

from sipha.errors import ConfigError
from sipha.vip.messages import SOCKET
from sipha.vip.placement import Placement


class Settings(NamedTuple):
    """Which addresses may be claimed, and the socket where."""

    placements: tuple[Placement, ...]
    socket: Path


def wanted(path: Path) -> bool:
    """Return False if the configuration says that the addresses are moved by other means than a guard's.

    True if it can't be read: then it is for the guard to say why.
    """
    try:
        with path.open("rb") as file:
            mode = tomllib.load(file).get("virtual_address", {}).get("mode", "loopback")
    except (OSError, ValueError, AttributeError):
        return True
    return mode not in {"loopback", "external", "hook"}


def read_settings(path: Path) -> Settings:
    """Read the section [virtual_address] of the configuration; raises ConfigError."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            section = tomllib.load(file).get("virtual_address", {})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path}: others than root can change it, and so get any address; chown root, chmod go-w")
    if section.get("mode") != "netlink":
        raise ConfigError(f'{path}: virtual_address.mode: is not "netlink"; the guard is for that mode alone')
    try:
        placements = tuple(Placement.parse(text) for text in section["addresses"])
        settings = Settings(placements, Path(section.get("guard", SOCKET)))
    except KeyError:
        raise ConfigError(f"{path}: virtual_address.addresses: is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: virtual_address: {error}") from None
    for placement in placements:
        if not placement.interface:
            raise ConfigError(
                f"{path}: virtual_address.addresses: {str(placement)!r} names no interface; "
                f'write one such as "{placement}%eth0"'
            )
    return settings
