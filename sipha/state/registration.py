"""What a REGISTER makes of the bindings of its AOR: RFC 3261 §10.3 steps 6 and 7, RFC 5626 §6, and the policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from sipha.errors import SipError
from sipha.sip.uri import Comparable, parse_uri
from sipha.state.binding import Binding
from sipha.state.changes import Reason
from sipha.state.entries import Contact, Policy, Refresh, Register
from sipha.state.outcomes import Conflict, Invalid, Rejected

STALE = Rejected(500, "Invalid CSeq number")
TOO_MANY = Rejected(403, "Too many registered contacts")

_replace = msgspec.structs.replace

_MOST_CONTACTS = 64
"""How many contacts one REGISTER may bind where the policy has no limit: each is compared with every binding."""

_LONGEST = 512
"""Characters of a phone's contact at most."""


class Moment(NamedTuple):
    """When a REGISTER is applied: as which version (the log index), at which cluster time (ms), under what rules.

    `contact_ids` gives the ids of new bindings.
    """

    version: int
    time: int
    policy: Policy
    schema: int
    contact_ids: Iterator[int]


class After(NamedTuple):
    """The bindings after a REGISTER, and why those gave way that it doesn't name, by their ids."""

    bindings: Sequence[Binding]
    dropped: Mapping[int, Reason] = MappingProxyType({})


def refresh(request: Register, binding: Binding, moment: Moment) -> Binding | None:
    """Return the only binding of an AOR as refreshed by the device that made it; None if the REGISTER is not just that.

    It is what `register` returns too: the way of nearly all REGISTERs, cut short.
    """
    if len(request.contacts) != 1 or request.call_id != binding.call_id or request.cseq <= binding.cseq:
        return None
    contact = request.contacts[0]
    seconds = asked(contact, moment.policy)
    if not seconds or contact.uri != binding.contact or contact.reg_id or request.wildcard:
        return None
    return _bound(request, contact, seconds, moment, reg_id=0, contact_id=binding.contact_id)


def first(request: Register, removed: int, moment: Moment) -> Binding | None:
    """Return the binding of an AOR that has none yet; None if the REGISTER asks for more than one, or for none.

    It is what `register` returns too, cut short: what a storm of phones that come back is made of.
    """
    if len(request.contacts) != 1 or request.cseq <= removed or request.wildcard:
        return None
    contact = request.contacts[0]
    seconds = asked(contact, moment.policy)
    if not seconds:
        return None
    reg_id = _reg_id(request, contact)
    return _bound(request, contact, seconds, moment, reg_id=reg_id, contact_id=next(moment.contact_ids))


def shortened(request: Register, binding: Binding) -> Refresh | None:
    """Return the record that has the same effect as a REGISTER if the AOR has this binding alone; None if none has."""
    if len(request.contacts) != 1 or request.cseq <= binding.cseq or request.wildcard:
        return None
    contact = request.contacts[0]
    if contact.expires == 0 or contact.reg_id:
        return None
    # Whatever a later release adds to a binding is compared too, or is taken from the one that is there.
    same = _binding(
        request,
        contact,
        binding.contact_id,
        binding.version,
        binding.expires_at,
        binding.cseq,
        0,
        binding.last_modified,
    )
    if same != binding:
        return None
    return Refresh(request.aor, binding.version, request.cseq, contact.expires, contact.jitter)


def refreshed(record: Refresh, binding: Binding, moment: Moment) -> Binding | None:
    """Return the binding as the REGISTER has refreshed it of which the record was made; None if it can't be that."""
    policy, time = moment.policy, moment.time
    seconds = record.expires
    if seconds is None:
        seconds = policy.default_expires
    if binding.version != record.version or record.cseq <= binding.cseq or not seconds:
        return None
    return _replace(
        binding,
        version=moment.version,
        expires_at=time + granted(seconds, record.jitter, policy) * 1000,
        cseq=record.cseq,
        last_modified=time,
    )


def register(request: Register, current: Sequence[Binding], removed: int, moment: Moment) -> After | Rejected:
    """Return the bindings after a REGISTER with contacts, given the unexpired ones before it.

    `removed` is the highest CSeq of this Call-ID that a tombstone remembers, or -1. Nothing is changed in place, so
    that the REGISTER happens wholly or not at all.
    """
    most = moment.policy.max_contacts or _MOST_CONTACTS
    if len(request.contacts) > most and (
        len(request.contacts) > 2 * most  # it may remove as many as it adds
        or sum(asked(contact, moment.policy) > 0 for contact in request.contacts) > most
    ):
        return TOO_MANY
    bindings = list(current)
    own: set[int] = set()
    for contact in request.contacts if len(request.contacts) == 1 else _distinct(request):
        seconds = asked(contact, moment.policy)
        if not seconds and request.cseq == removed:
            continue  # a repeat: this very REGISTER removed it
        reg_id = _reg_id(request, contact)
        place = find(bindings, contact.uri, contact.instance, reg_id, own)
        if place < 0:
            if seconds and request.cseq <= removed:
                return STALE
            # Since schema 2 what isn't there may be removed: this may be the repeat of the very REGISTER that did it.
            if request.cseq < removed and moment.schema < 2:
                return STALE
            if seconds:
                binding = _bound(request, contact, seconds, moment, reg_id=reg_id, contact_id=next(moment.contact_ids))
                bindings.append(binding)
                own.add(binding.contact_id)
            continue
        old = bindings[place]
        if seconds and _is_repeat(request, contact, old):
            own.add(old.contact_id)
            continue
        if _is_stale(request, old) or (old.call_id != request.call_id and request.cseq <= removed):
            return STALE
        if seconds:
            bindings[place] = _bound(request, contact, seconds, moment, reg_id=reg_id, contact_id=old.contact_id)
            own.add(old.contact_id)
        else:
            del bindings[place]
    if not own or len(bindings) == len(own):
        return After(bindings)
    return _limit(request, bindings, own, len(current), moment.policy)


def clear(request: Register, current: Sequence[Binding], removed: int) -> After | Rejected:
    """Return the bindings after `Contact: *`, which removes all or fails (RFC 3261 §10.3 step 6)."""
    if request.cseq == removed:
        return After(current)  # a repeat; what was registered since stays
    if request.cseq < removed or any(_is_stale(request, binding) for binding in current):
        return STALE
    return After(())


def bring(
    request: Register, current: Sequence[Binding], removed: int, moment: Moment
) -> Binding | Conflict | Invalid | None:
    """Return the binding that comes with a REGISTER from elsewhere, None if what is here is as good or later.

    `removed` is as for `register`. What a phone has told this registrar counts, however the order of the two was.
    """
    if len(request.contacts) != 1 or request.wildcard or not (seconds := request.contacts[0].expires):
        return Invalid("a binding is one contact with an expiry")
    contact, reg_id = request.contacts[0], _reg_id(request, request.contacts[0])
    if request.cseq <= removed or find(current, contact.uri, contact.instance, reg_id) >= 0:
        return None
    new = _bound(request, contact, seconds, moment, reg_id=reg_id, contact_id=next(moment.contact_ids))
    binding = msgspec.structs.replace(new, expires_at=moment.time + seconds * 1000)
    if moment.policy.one_per_instance and _superseded((*current, binding), {old.contact_id for old in current}):
        return None
    if moment.policy.max_contacts and len(current) >= moment.policy.max_contacts:
        return Conflict(f"{request.aor} has {len(current)} bindings, and may have no more")
    return binding


def asked(contact: Contact, policy: Policy) -> int:
    """Return the expiry in seconds that a contact asks for; 0 removes its binding."""
    return policy.default_expires if contact.expires is None else contact.expires


def granted(seconds: int, jitter: int, policy: Policy) -> int:
    """Return the expiry in seconds that the policy grants to who asks for so many."""
    most = policy.max_expires
    if most and seconds > most:
        seconds = most
    return max(seconds - jitter, policy.min_expires, 1)


def find(
    bindings: Sequence[Binding], uri: str, instance: str = "", reg_id: int = 0, skipped: Container[int] = ()
) -> int:
    """Return the place of the binding that a contact refreshes, or -1; not of one whose id is in `skipped`.

    With a reg-id that is the binding of the same instance and reg-id (RFC 5626 §6), otherwise the one whose URI is
    equivalent; and as that is not transitive (RFC 3261 §19.1.4), one that is spelt the same goes first.
    """
    if reg_id:
        for place, binding in enumerate(bindings):
            if binding.reg_id == reg_id and binding.instance == instance and binding.contact_id not in skipped:
                return place
        return -1
    for place, binding in enumerate(bindings):
        if binding.contact == uri and binding.contact_id not in skipped:
            return place
    if not bindings:
        return -1
    sought = _comparable(uri)
    if sought is not None:
        for place, binding in enumerate(bindings):
            other = None if binding.contact_id in skipped else _comparable(binding.contact)
            if other is not None and sought.equivalent(other):
                return place
    return -1


def _distinct(request: Register) -> list[Contact]:
    """Return the contacts without those that are named again later in the same REGISTER: the later one counts."""
    distinct: list[Contact] = []
    flows, texts = set[tuple[int, str]](), set[str]()
    uris = defaultdict[tuple[object, ...], list[Comparable]](list)  # by what must be equal
    for contact in reversed(request.contacts):
        if reg_id := _reg_id(request, contact):
            flow = reg_id, contact.instance
            if flow in flows:
                continue
            flows.add(flow)
        else:
            if contact.uri in texts:
                continue
            texts.add(contact.uri)
            uri = _comparable(contact.uri)
            if uri is not None:
                alike = uris[uri.parts]
                if any(uri.equivalent(other) for other in alike):
                    continue
                alike.append(uri)
        distinct.append(contact)
    distinct.reverse()
    return distinct


def _reg_id(request: Register, contact: Contact) -> int:
    """Return the reg-id if it counts: only with outbound and an instance (RFC 5626 §6)."""
    return contact.reg_id if request.outbound and contact.instance else 0


def _limit(request: Register, bindings: list[Binding], own: set[int], before: int, policy: Policy) -> After | Rejected:
    """Drop what one_per_instance and max_contacts don't allow beside `own`, the bindings that the REGISTER names."""
    replaced = _superseded(bindings, own) if policy.one_per_instance else []
    evicted: list[Binding] = []
    if policy.max_contacts:
        left = len(bindings) - len(replaced)
        if left > max(policy.max_contacts, before):
            if policy.full == "refuse":
                return TOO_MANY
            others = [binding for binding in bindings if binding.contact_id not in own and binding not in replaced]
            others.sort(key=_age)
            evicted = others[: left - policy.max_contacts]
    # A REGISTER that comes too late doesn't drop what a later one of the same Call-ID made.
    if any(_is_stale(request, binding) for binding in (*replaced, *evicted)):
        return STALE
    dropped: dict[int, Reason] = dict.fromkeys([binding.contact_id for binding in replaced], "replaced")
    dropped |= dict.fromkeys([binding.contact_id for binding in evicted], "evicted")
    return After([binding for binding in bindings if binding.contact_id not in dropped], dropped)


def _superseded(bindings: Sequence[Binding], own: set[int]) -> list[Binding]:
    """Return the bindings that devices in `own` had before; a device's several flows (RFC 5626) stand side by side."""
    plain = {binding.instance for binding in bindings if binding.contact_id in own and not binding.reg_id}
    flows = {binding.instance for binding in bindings if binding.contact_id in own and binding.reg_id}
    return [
        binding
        for binding in bindings
        if binding.instance
        and binding.contact_id not in own
        and (binding.instance in plain or (binding.instance in flows and not binding.reg_id))
    ]


def _age(binding: Binding) -> tuple[int, int]:
    return binding.last_modified, binding.contact_id


def _is_stale(request: Register, binding: Binding) -> bool:
    # "If they are the same, the registrar compares the CSeq value. If the value is higher than that of the existing
    # binding, it MUST update or remove the binding as above. If not, the update MUST be aborted" (§10.3 step 7).
    return binding.call_id == request.call_id and request.cseq <= binding.cseq


def _is_repeat(request: Register, contact: Contact, binding: Binding) -> bool:
    return (
        binding.cseq == request.cseq
        and binding.call_id == request.call_id
        and binding.contact == contact.uri
        and binding.q == contact.q
        and binding.instance == contact.instance
        and binding.params == contact.params
    )


def _bound(
    request: Register, contact: Contact, seconds: int, moment: Moment, *, reg_id: int, contact_id: int
) -> Binding:
    """The binding that a REGISTER makes now, for as many seconds as it asks for."""
    expires_at = moment.time + granted(seconds, contact.jitter, moment.policy) * 1000
    return _binding(request, contact, contact_id, moment.version, expires_at, request.cseq, reg_id, moment.time)


def _binding(  # noqa: PLR0917  those of a binding's fields that a REGISTER doesn't say, in their order
    request: Register,
    contact: Contact,
    contact_id: int,
    version: int,
    expires_at: int,
    cseq: int,
    reg_id: int,
    last_modified: int,
) -> Binding:
    return Binding(
        request.aor,
        contact.uri,
        contact_id,
        version,
        expires_at,
        request.call_id,
        cseq,
        contact.q,
        contact.instance,
        reg_id,
        contact.params,
        request.received,
        request.socket,
        request.flow,
        request.path,
        request.user_agent,
        request.methods,
        request.flags,
        request.cflags,
        request.attr,
        last_modified,
        request.kv_store,
    )


def _comparable(text: str) -> Comparable | None:
    """What is compared of a URI, None if it is none."""
    # What is remembered must not be as long as an operator's request.
    return _parsed(text) if len(text) <= _LONGEST else _parsed.__wrapped__(text)


@lru_cache(maxsize=1024)  # a REGISTER's contacts are compared with each other, and with all bindings
def _parsed(text: str) -> Comparable | None:
    try:
        return parse_uri(text).comparable
    except SipError:
        return None
