"""Whether bindings live as long as they were granted, and go only as an entry of the log says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

from sipha.state.entries import Expire
from sipha.state.location import Location
from tests.cluster_sim.times import DRIFT, LATE
from tests.cluster_sim.violation import Violation


class Grant(NamedTuple):
    """A binding's version: since when, by true time, and for how many seconds."""

    since: float
    seconds: float


class Expiry:
    """The bindings that were granted and that neither time nor their phone has removed."""

    def __init__(self) -> None:
        self._grants: dict[str, dict[tuple[int, int], Grant]] = defaultdict(dict)  # by AOR: contact id, version

    def registered(self, location: Location, aor: str, since: float) -> None:
        """A phone has registered, by an entry that was made at `since`."""
        grants = self._grants[aor]
        present = {(each.contact_id, each.version): each for each in location.bindings(aor, 0)}
        for key in grants.keys() - present.keys():
            del grants[key]  # replaced or removed by the phone
        for key, binding in present.items():
            if key not in grants:
                grants[key] = Grant(since, (binding.expires_at - binding.last_modified) / 1000)

    def expired(self, location: Location, record: Expire, registered: Collection[str], now: float) -> None:
        """Bindings were removed because they have run out; phones of `registered` AORs have registered as well."""
        named = {(aor, contact_id, version) for aor, contact_id, version in record.bindings}
        for aor in {aor for aor, _, _ in named}.difference(registered):
            left = {(each.contact_id, each.version) for each in location.bindings(aor, 0)}
            grants = self._grants[aor]
            for contact_id, version in grants.keys() - left:
                grant = grants.pop((contact_id, version))
                if (aor, contact_id, version) not in named:
                    raise Violation(f"a binding of {aor} is removed that was refreshed before")
                early = grant.since + grant.seconds - now
                if early > LATE + DRIFT * grant.seconds:
                    raise Violation(f"a binding of {aor} is removed {early:.3f} s early")
