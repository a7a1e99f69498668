"""What mysqldump and mariadb-dump write: CREATE TABLE for the names of the columns, INSERT for the rows.

It is read in pieces, however large it is. Other statements are passed over. What an INSERT holds that can't be
understood costs the row, or if its end can't be found, the statement.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import IO, NamedTuple

from sipha.migration.rows import MigrationError, Row

PIECE = 1 << 20
"""Bytes that are read at a time."""

# A text that has no end is matched up to the end of what was read: there may be more of it.
_TOKEN = re.compile(
    rb"""(?P<space>[ \t\r\n]++ | --(?=[ \t\r\n])[^\n]*+\n? | \#[^\n]*+\n? | /\*(?:.*?\*/|.*\Z))
       | (?P<text>'(?:[^'\\]++|\\.|'')*+(?:'|\\?\Z))
       | (?P<name>`(?:[^`]++|``)*+(?:`|\Z))
       | (?P<quoted>"(?:[^"\\]++|\\.|"")*+(?:"|\\?\Z))
       | (?P<word>[A-Za-z0-9_$.+\-@\x80-\xff]++)
       | (?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = {quote: re.compile(rb"\\(.)|" + 2 * quote, re.DOTALL) for quote in (b"'", b'"')}
_ESCAPED = {b"0": b"\0", b"b": b"\b", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"Z": b"\x1a"}
_HEX = re.compile(rb"0[xX]([0-9a-fA-F]+)\Z")
_NUMBER = re.compile(rb"[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?\Z")
# What begins a line within CREATE TABLE ( … ) and is no column.
_NO_COLUMN = frozenset(b"PRIMARY UNIQUE KEY INDEX FULLTEXT SPATIAL CONSTRAINT FOREIGN CHECK PERIOD".split())


class Token(NamedTuple):
    """One word, name, text or mark, as it is written."""

    kind: str
    text: bytes


class Dump:
    """The rows of some tables in a dump; see Source."""

    unit = "line"

    def __init__(self, file: IO[bytes], name: str, size: int, tables: Collection[str]) -> None:
        self.name = name
        self.size = size
        self._file = file
        self._tokens = Tokens(file)
        self._tables = frozenset(tables)
        self._columns: dict[str, tuple[str, ...]] = {}

    def rows(self) -> Iterator[Row]:
        """See Source."""
        tokens = self._tokens
        for token in tokens:
            word = token.text.upper() if token.kind == "word" else b""
            if word == b"CREATE":
                self._create()
            elif word in {b"INSERT", b"REPLACE"}:
                yield from self._insert()
            elif token.text != b";":
                tokens.skip_statement()

    def close(self) -> None:
        """See Source."""
        self._file.close()

    def _create(self) -> None:
        """Learn the columns of a table."""
        tokens = self._tokens
        if next(tokens, _END).text.upper() != b"TABLE":
            tokens.skip_statement()
            return
        words: list[Token] = []
        for token in tokens:
            if token.text in {b"(", b";"}:
                break
            words.append(token)
        columns, depth, first = [], 1, True
        for token in tokens if words else ():
            if token.text == b";":
                break
            if first and depth == 1 and (token.kind != "word" or token.text.upper() not in _NO_COLUMN):
                columns.append(_name(token).lower())
            depth += (token.text == b"(") - (token.text == b")")
            first = token.text == b"," and depth == 1
        if words:
            self._columns[_table(words)] = tuple(columns)

    def _insert(self) -> Iterator[Row]:
        tokens = self._tokens
        words: list[Token] = []
        named: list[str] = []
        for token in tokens:
            if token.kind == "word" and token.text.upper() in {b"VALUES", b"VALUE"}:
                break
            if token.text == b";":
                return
            if token.text == b"(":
                named = [_name(name) for name in tokens.until_closed() if name.text != b","]
            else:
                words.append(token)
        table = _table([word for word in words if word.text.upper() not in {b"INTO", b"IGNORE"}])
        if table not in self._tables:
            tokens.skip_statement()
            return
        columns = tuple(name.lower() for name in named) or self._columns.get(table)
        if columns is None:
            raise MigrationError(
                f"{self.name}: line {tokens.line}: an INSERT into {table} doesn't name its columns, and no CREATE "
                "TABLE before it does; dump with it, or with --complete-insert"
            )
        for token in tokens:
            if token.text == b";":
                return
            if token.text == b"(":
                line = tokens.line
                yield self._row(table, columns, line)

    def _row(self, table: str, columns: tuple[str, ...], line: int) -> Row:
        values: list[str | None] = []
        flaw, expected, prefix = "", True, b""
        for token in self._tokens.until_closed():
            if token.text == b",":
                expected = True
            elif not expected:
                flaw = "a value is no literal"
            elif token.kind == "word" and (token.text[:1] == b"_" or token.text in {b"x", b"X"}):
                prefix = token.text  # the character set of the text that follows, or that it is hexadecimal
            else:
                try:
                    values.append(_value(token, prefix))
                except ValueError as error:
                    flaw = str(error)
                expected, prefix = False, b""
        if not flaw and len(values) != len(columns):
            flaw = f"it has {len(values)} values, and the table {len(columns)} columns"
        found = {} if flaw else dict(zip(columns, values, strict=True))
        return Row(table, line, found, self._tokens.done, flaw)


class Tokens:
    """The tokens of a dump, without what is between them; `line` is that of the last one, `done` the bytes read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._buffer = b""
        self._at = 0
        self._ended = False
        self._before = 0
        self.line = 1

    @property
    def done(self) -> int:
        """The bytes before the next token."""
        return self._before + self._at

    def __iter__(self) -> Iterator[Token]:
        """See __next__."""
        return self

    def __next__(self) -> Token:
        """The next token."""
        while True:
            match = _TOKEN.match(self._buffer, self._at)
            if (match is None or match.end() == len(self._buffer)) and not self._ended:
                self._read()
                continue
            if match is None:
                raise StopIteration
            self._at = match.end()
            kind, text = str(match.lastgroup), match[0]
            if kind == "space" or len(text) > 1:
                self.line += text.count(b"\n")
            if kind != "space":
                return Token(kind, text)

    def skip_statement(self) -> None:
        """Go on behind the next semicolon."""
        for token in self:
            if token.text == b";":
                return

    def until_closed(self) -> Iterator[Token]:
        """The tokens up to the parenthesis that closes the one before them, which isn't one of them."""
        depth = 1
        for token in self:
            depth += (token.text == b"(") - (token.text == b")")
            if not depth:
                return
            yield token

    def _read(self) -> None:
        """Have more to read; a token that is long is read in ever larger pieces."""
        left = self._buffer[self._at :]
        piece = self._file.read(max(PIECE, len(left)))
        self._ended = not piece
        self._before += self._at
        self._buffer, self._at = left + piece, 0


_END = Token("mark", b"")


def _table(words: list[Token]) -> str:
    """The name of a table, without that of its database; of CREATE TABLE IF NOT EXISTS it is the last word, too."""
    return _name(words[-1]).rpartition(".")[2] if words else ""


def _name(token: Token) -> str:
    text = token.text
    if token.kind in {"name", "quoted"}:
        text = text[1:-1].replace(b"``", b"`")
    return text.decode("utf-8", "replace")


def _value(token: Token, prefix: bytes) -> str | None:
    """A literal as text, None for NULL; raises ValueError."""
    if prefix.upper() == b"X":
        return bytes.fromhex(token.text.strip(b"'").decode("ascii")).decode("utf-8", "surrogateescape")
    if token.kind in {"text", "quoted"}:
        quote = token.text[:1]
        if len(token.text) < 2 or token.text[-1:] != quote:
            raise ValueError("a text has no end")
        return _ESCAPE[quote].sub(_unescaped, token.text[1:-1]).decode("utf-8", "surrogateescape")
    if token.kind == "word":
        if token.text.upper() == b"NULL":
            return None
        if match := _HEX.match(token.text):
            return bytes.fromhex(match[1].decode()).decode("utf-8", "surrogateescape")
        if _NUMBER.match(token.text):
            return token.text.decode()
    raise ValueError(f"{token.text[:40].decode('utf-8', 'replace')} is no literal")


def _unescaped(match: re.Match[bytes]) -> bytes:
    escaped = match[1]
    return match[0][:1] if escaped is None else _ESCAPED.get(escaped, escaped)
