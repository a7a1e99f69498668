"""Events as siphactl prints them: a line for each, without what could move the cursor of who reads it."""

from __future__ import annotations

from sipha.admin.display import printable
from sipha.admin.events import Dropped, Start
from sipha.events import event as kinds
from sipha.events.event import AnyEvent, Origin, kind_of


def line(event: AnyEvent) -> str:
    """When, where in the log, who led or whom it concerns, and what."""
    return printable(f"{event.at} {event.id:<12} {event.node or '?':<4} {kind_of(event)} {_what(event)}".rstrip())


def line_of_stream(told: Start | Dropped) -> str:
    """What a stream of events says of itself."""
    match told:
        case Start(node, cluster, index):
            return f"# {node} of cluster {cluster} tells, from entry {index} on"
        case Dropped(detail):
            return f"# dropped: {printable(detail)}"


def _what(event: AnyEvent) -> str:
    match event:
        case kinds.BindingRemoved():
            by = "" if event.by is None else f", by REGISTER {_origin(event.by)}"
            return f"{event.aor} {event.contact}: {event.reason}{by}"
        case kinds.BindingChanged():
            return f"{_binding(event)}, before {event.before.contact} {_origin(event.before)}"
        case kinds.BindingAdded() | kinds.BindingRefreshed():
            return _binding(event)
        case kinds.AccountCreated() | kinds.AccountChanged() | kinds.AccountDeleted():
            return event.account
        case kinds.SettingChanged():
            return f"{event.name} = {event.value!r}"
        case kinds.MembersChanged():
            return ", ".join(f"{member.name} ({member.role})" for member in event.members)
        case kinds.SchemaRaised():
            return str(event.schema)
        case kinds.LeaderElected():
            return f"term {event.term}"
        case kinds.VipGained() | kinds.VipLost():
            return ", ".join(event.addresses)
        case kinds.AlarmRaised() | kinds.AlarmCleared():
            return event.alarm
        case kinds.Gap():
            return f"nothing is known of entries {event.after + 1} to {event.index}: {event.why}"
        case _:
            return ""


def _binding(event: kinds.BindingEvent) -> str:
    source = _origin(Origin(event.contact, event.received, event.user_agent, event.call_id))
    return f"{event.aor} {event.contact} for {event.expires:g} s {source}"


def _origin(origin: Origin) -> str:
    agent = f" ({origin.user_agent})" if origin.user_agent else ""
    return f"from {origin.received or origin.contact}{agent}, Call-ID {origin.call_id}"
