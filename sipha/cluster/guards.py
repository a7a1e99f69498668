"""What PySyncObj 0.3.17 would do wrong with a correct message, undone before the message reaches it.

F1  It deletes every entry after the one that a message follows, even if they are the same as the message's own, so that
    a repeated or delayed message deletes entries which a majority was counted to hold.
F3  A message that follows no entry raises its commit index over whatever the follower's own log holds.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from sipha.cluster.wire import AppendEntries, Entry, ProtocolError
from sipha.state.entries import UNDECODABLE, Member, PutMembers, decode

REGULAR = 0
NO_OP = 1
MEMBERSHIP = 4
"""An entry as any other, but for the members that count from it on; 2 and 3 are the library's own."""

_ALLOWED = (bytes([REGULAR]), bytes([NO_OP]), bytes([MEMBERSHIP]))


MAX_COMMAND = 128 * 1024
"""Bytes of the longest command. The library sends one of twice that or more in pieces, wrongly."""


def members_of(command: bytes) -> tuple[Member, ...]:
    """The members that a membership entry names; raises ValueError, or UnknownSchema."""
    try:
        records = decode(command[1:]).records
    except UNDECODABLE as error:
        raise ValueError(str(error)) from error
    if len(records) != 1 or not isinstance(records[0], PutMembers):
        raise ValueError("a membership entry holds something else")
    return records[0].members


def _names_members(command: bytes) -> bool:
    try:
        members_of(command)
    except ValueError:
        return False
    return True


class Log(Protocol):
    """A node's log, as far as the guards look at it."""

    @property
    def first_index(self) -> int:
        """The index of the first entry that is kept."""

    @property
    def last_index(self) -> int:
        """The index of the last entry."""

    @property
    def commit_index(self) -> int:
        """The index up to which entries are known to be committed."""

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None if the log has none."""


class Verified(NamedTuple):
    """What the library may see of a message, and up to where our log agrees with the leader's if it can't know."""

    append: AppendEntries
    matched: int | None = None


class DivergedError(Exception):
    """A leader contradicts an entry that is committed here: one of the two logs is damaged."""


def check_entries(append: AppendEntries) -> None:
    """Raise ProtocolError unless the entries follow each other and are of the kinds that a node may send.

    The library would unpickle commands of its other kinds: membership and version.
    """
    if append.prev_index is None or append.prev_term is None:
        if append.entries or append.prev_index is not append.prev_term:
            raise ProtocolError("not our log")
        return
    index, term = append.prev_index, append.prev_term
    for command, entry_index, entry_term in append.entries:
        index += 1
        if entry_index != index or not term <= entry_term <= append.term or command[:1] not in _ALLOWED:
            raise ProtocolError("not our log")
        if len(command) > MAX_COMMAND or (command[0] == MEMBERSHIP and not _names_members(command)):
            raise ProtocolError("not our log")
        term = entry_term


def verify(append: AppendEntries, log: Log) -> Verified:
    """Strip what the log already holds, so that only a true conflict deletes anything (Raft §5.3).

    Raises DivergedError if that would delete a committed entry.
    """
    prev, entries = append.prev_index, append.entries
    if prev is None:
        return Verified(_with(append, commit_index=min(append.commit_index, log.commit_index)))
    first = log.first_index
    if prev < first:
        # What a snapshot covers here is committed, and therefore the same at any leader.
        covered, entries = entries[: first - prev], entries[first - prev :]
        first_term = log.term_at(first)
        if prev + len(covered) == first and covered[-1][2] != first_term:
            raise DivergedError(f"entry {first} is committed here and different at the leader")
        prev, append = first, _with(append, prev_index=first, prev_term=first_term, entries=entries)
    if log.term_at(prev) != append.prev_term:
        if prev <= log.commit_index:
            raise DivergedError(f"entry {prev} is committed here and different at the leader")
        return Verified(append)  # the library asks the leader to go back, and does nothing else
    end = prev + len(entries)
    commit_index = min(append.commit_index, end)  # what follows in our log isn't verified by this message
    last = log.last_index
    if prev == last:
        return Verified(append if commit_index == append.commit_index else _with(append, commit_index=commit_index))
    held = _held(entries, log)
    if held == len(entries) and end < last:
        # Nothing is new and nothing conflicts: let it follow our last entry, where there is nothing to delete.
        last_term = log.term_at(last)
        return Verified(
            _with(append, prev_index=last, prev_term=last_term, entries=[], commit_index=commit_index), matched=end
        )
    if prev + held < min(last, log.commit_index):
        raise DivergedError(f"entry {prev + held + 1} is committed here and different at the leader")
    # Also on a conflict go past all that matches: deleted and added again, it would be missing after a crash between.
    prev_term = entries[held - 1][2] if held else append.prev_term
    return Verified(
        _with(append, prev_index=prev + held, prev_term=prev_term, entries=entries[held:], commit_index=commit_index)
    )


def without_entries(append: AppendEntries) -> AppendEntries:
    """Return the message as a heartbeat that says nothing of the log, and asks for no answer about it."""
    return _with(append, prev_index=None, prev_term=None, entries=[])


def _held(entries: list[Entry], log: Log) -> int:
    """How many of the entries, from the first on, the log holds."""
    for count, (_, index, term) in enumerate(entries):
        if log.term_at(index) != term:
            return count
    return len(entries)


def _with(append: AppendEntries, **changes: object) -> AppendEntries:
    return msgspec.structs.replace(append, **changes)
