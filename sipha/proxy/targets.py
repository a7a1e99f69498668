"""The targets of requests, from the location service of this process."""

from __future__ import annotations

from collections.abc import Callable

from zope.interface import implementer

from sipha.auth.authenticator import Authenticator, Verified
from sipha.proxy.interfaces import ITargets
from sipha.proxy.target import TargetSet, Wanted, target_set
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.state.interfaces import ICredentials, ILocation, ILog


@implementer(ITargets)
class Targets:
    """Answers at once; nonce counts are used up in the window of `authenticator`."""

    def __init__(self, log: ILog, location: ILocation, credentials: ICredentials, authenticator: Authenticator) -> None:
        self._log = log
        self._location = location
        self._credentials = credentials
        self._authenticator = authenticator

    def find(  # noqa: PLR0917  see ITargets
        self,
        request: Request,  # noqa: ARG002
        flow: Flow,  # noqa: ARG002
        wanted: Wanted,
        verified: Verified | None,
        now: float,
        done: Callable[[TargetSet | None, float], None],
    ) -> None:
        """See ITargets."""
        targets: TargetSet | None = target_set(wanted, self._location, self._credentials)
        if verified is not None and not self._authenticator.use_up(verified.claim, self._log.cluster_time()):
            targets = None
        done(targets, now)
