"""A strict reader of tar archives by position.

Python's tarfile, and what builds on it, takes a damaged header for the end of the archive and stops without a word.
Here every header's checksum must hold, every member must lie inside the file, and the archive must end in two zero
blocks; anything else is a TarError that says where. Nothing is ever extracted: no member's name becomes a path.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512
_ZEROS = bytes(BLOCK)
_OCTAL = b"01234567"
_MAX_EXTENSION_HEADER_BYTES = 1 << 16
_REGULAR = (b"0", b"\0", b"7")
_DIRECTORY = b"5"
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_PAX_LOCAL, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)

Read = Callable[[int, int], bytes]
"""(offset, size) -> the bytes there; fewer at the end of the archive."""


class TarError(ValueError):
    """Damage in an archive.

    Attributes:
        offset: byte where the damaged member starts.
        name: of that member, as far as it can be read; "" when not even that.
        certain: whether a valid checksum vouches for the name, or for there being none: every member is complete.
        resume: where the next member starts; None when that is not known.
    """

    def __init__(
        self, reason: str, offset: int, name: str = "", certain: bool = False, resume: int | None = None
    ) -> None:
        super().__init__(reason)
        self.offset, self.name, self.certain, self.resume = offset, name, certain, resume


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of an archive: its data are the bytes [data, data + size), its headers start at `start`."""

    name: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """Where the next member starts."""
        return self.data + padded(self.size)


def padded(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def split_name(name: str) -> tuple[str, str] | None:
    """A member's name -> (key, extension), at the first dot of its base name; None for what is no part of a sample.

    Directories in the name stay part of the key. Names without a dot, hidden files and `__meta__` names are no samples,
    which is also WebDataset's rule.
    """
    match = _NAME.fullmatch(name)
    if match is None or (name.startswith("__") and name.endswith("__")):
        return None
    return match[1], match[2]


def walk(read: Read, start: int, stop: int, closed: bool = True) -> Iterator[Member]:
    """Yield the regular members in the bytes [start, stop) of an archive, in order; directories are passed over.

    Args:
        closed: whether the archive ends there, which two zero blocks and nothing after them must mark. A region of an
            archive is not closed: it ends with a member.

    Raises:
        TarError: at the first damage.
    """
    position = first = start
    name, size_override = "", None
    while position < stop:
        block = read(position, BLOCK)
        if len(block) < BLOCK:
            raise TarError("truncated at a header", first, name)
        if block == _ZEROS:
            if not closed or first != position:
                raise TarError("zero blocks in the middle of a sample", position)
            _check_end(read, position, stop)
            return
        try:
            kind, short_name, size = _parse(block)
        except ValueError as error:
            raise TarError(str(error), first, name or _text(block[:100])) from None
        data = position + BLOCK
        if kind in (_PAX_LOCAL, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            payload = _payload(read, first, data, size, stop)
            position = data + padded(size)
            if kind == _LONG_NAME:
                name = _text(payload)
            elif kind != _LONG_LINK:
                name, size_override = _pax(payload, kind, first, name, size_override)
            if kind == _PAX_GLOBAL:
                first = position
            continue
        name = name or short_name
        size = size if size_override is None else size_override
        length = 0 if kind in _WITHOUT_DATA else size
        following = data + padded(length)
        if "\0" in name:
            raise TarError("a zero byte in a member's name", first, name, True, following)
        if data + length > stop:
            raise TarError(f"truncated inside the data of {name!r}", first, name, True)
        if kind in _REGULAR:
            if following > stop:
                raise TarError(f"truncated at the end of {name!r}", first, name, True)
            yield Member(name, first, data, size)
        elif kind != _DIRECTORY:
            raise TarError(f"{name!r} is no regular file (type {kind!r})", first, name, True, following)
        position = first = following
        name, size_override = "", None
    if first != position:
        raise TarError("truncated after an extension header", first, name)
    if closed:
        raise TarError("truncated at a member's end: the two closing zero blocks are missing", position)


def find_header(read: Read, start: int, stop: int) -> int | None:
    """The first block in [start, stop) that is a valid header with a tar's magic; None without one."""
    for position in range(start, stop - BLOCK + 1, BLOCK):
        block = read(position, BLOCK)
        if block[257:262] == b"ustar":
            try:
                _parse(block)
            except ValueError:
                continue
            return position
    return None


def end_of_content(read: Read, size: int) -> int:
    """Where the zero blocks start that an archive of `size` bytes ends in; `size` when there are none."""
    position = size
    while position >= BLOCK and read(position - BLOCK, BLOCK) == _ZEROS:
        position -= BLOCK
    return position


def _parse(block: bytes) -> tuple[bytes, str, int]:
    """One header block -> (type, name, size)."""
    stored = _number(block[148:156], "checksum")
    # The checksum field itself counts as eight spaces.
    if stored != sum(block) - sum(block[148:156]) + 8 * 32:
        raise ValueError("bad header checksum")
    size = _number(block[124:136], "size")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return block[156:157], name, size


def _number(field: bytes, what: str) -> int:
    """Octal digits, or GNU's big-endian binary where the first bit is set."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise ValueError(f"bad {what} in a header")
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(_OCTAL):
        raise ValueError(f"bad {what} in a header")
    return int(digits, 8) if digits else 0


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _payload(read: Read, first: int, data: int, size: int, stop: int) -> bytes:
    if size > _MAX_EXTENSION_HEADER_BYTES:
        raise TarError(f"an extension header of {size} bytes", first, resume=data + padded(size))
    if data + padded(size) > stop:
        raise TarError("truncated inside an extension header", first)
    return read(data, size)


def _pax(payload: bytes, kind: bytes, first: int, name: str, size: int | None) -> tuple[str, int | None]:
    """Records "LENGTH KEY=VALUE\\n" -> what they say about name and size."""
    rest = payload
    while rest:
        digits, space, _ = rest.partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 8 else 0
        record = rest[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if not len(digits) + 1 < length <= len(rest) or not record.endswith(b"\n") or not equals:
            raise TarError("a malformed pax header", first)
        rest, value = rest[length:], value[:-1]
        if key not in (b"path", b"size") and not key.startswith(b"GNU.sparse"):
            continue
        if kind == _PAX_GLOBAL or key.startswith(b"GNU.sparse") or (key == b"size" and not value.isdigit()):
            raise TarError(f"an unsupported pax record {key.decode()!r}", first)
        if key == b"path":
            name = value.decode("utf-8", "backslashreplace")
        else:
            size = int(value[:20])
    return name, size


def _check_end(read: Read, position: int, stop: int) -> None:
    if stop - position < 2 * BLOCK:
        raise TarError("truncated at a member's end: only one closing zero block", position, certain=True)
    # Tar pads to its record size with zeros; anything else would be members that no reader reaches.
    chunk = 1 << 20
    for at in range(position, stop, chunk):
        if read(at, min(chunk, stop - at)).strip(b"\0"):
            # Two archives in one file, or a header that was wiped: whose members are lost is not known.
            raise TarError("data after the archive's first closing zero block", position)
