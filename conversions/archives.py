"""Where the parts of a PyTorch file lie: the zip layout since torch 1.6 and the older plain one."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

from conversions.pickle_machine import Machine, Refused, check_tree
from conversions.tensors import Extent
from conversions.torch_globals import BUILDERS, PendingTensor, Storage, locate, storage_fields

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_MEMBERS = 200_000
MAX_DIRECTORY_BYTES = 64 << 20

_LEAVES = (bool, int, float, PendingTensor)
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_END64_LOCATOR = struct.Struct("<4sLQL")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


def read_zip_tree(path: Path) -> Any:
    """The object tree of a zip `.pt` file, tensors lazy; raises `Refused` with the reason."""
    members = _members(path)
    heads = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(heads) != 1:
        raise Refused("is a zip archive but not a PyTorch checkpoint (it needs one data.pkl)")
    prefix = heads[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in members:
        raise Refused("is a TorchScript program; save its state_dict() instead")
    if f"{prefix}byteorder" in members and _bytes(members[f"{prefix}byteorder"]) != b"little":
        raise Refused("was written on a big-endian machine; save it again on a little-endian one")

    def persistent(identity: Any) -> Storage:
        dtype, key, count, view = storage_fields(identity)
        extent = members.get(f"{prefix}data/{key}")
        if extent is None or view is not None:
            raise Refused(f"lacks its stored part {key[:20]!r}")
        if count * dtype.itemsize > extent.size:
            raise Refused(f"declares {count * dtype.itemsize} bytes for a part of {extent.size}")
        return Storage(dtype, count, lambda: extent)

    head = members[heads[0]]
    if head.crc and _checksum(head) != head.crc:
        raise Refused("is damaged (a checksum doesn't match); copy or download it again")
    with open(path, "rb") as file:
        file.seek(head.start)
        tree = Machine(BUILDERS, persistent).read(_Window(file, head.size))  # type: ignore[arg-type]
    check_tree(tree, _LEAVES)
    return locate(tree)


def read_legacy_tree(path: Path) -> Any:
    """The object tree of an old-format file: four pickles, storage keys, then raw storages."""
    storages: dict[str, tuple[Any, int]] = {}
    extents: dict[str, Extent] = {}

    def persistent(identity: Any) -> Storage:
        dtype, key, count, view = storage_fields(identity)
        if storages.setdefault(key, (dtype, count)) != (dtype, count):
            raise Refused(f"declares its stored part {key[:20]!r} twice, differently")
        if view is None:
            return Storage(dtype, count, lambda: extents[key])
        _view_key, start, size = view
        if not (type(start) is int and type(size) is int and 0 <= start <= start + size <= count):
            raise Refused("holds a view outside its storage")

        def part() -> Extent:
            whole = extents[key]
            return Extent(path, whole.start + start * dtype.itemsize, size * dtype.itemsize)

        return Storage(dtype, size, part)

    def none(_: Any) -> Storage:
        raise Refused("names a storage where none can be")

    file_bytes = path.stat().st_size
    with open(path, "rb") as file:
        plain = Machine(BUILDERS, none)
        if plain.read(file) != LEGACY_MAGIC or plain.read(file) != LEGACY_PROTOCOL:
            raise Refused("is a pickle but not a PyTorch checkpoint")
        system = plain.read(file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Refused(
                "was written on a big-endian machine; save it again on a little-endian one"
            )
        tree = Machine(BUILDERS, persistent).read(file)
        keys = plain.read(file)
        if not isinstance(keys, list) or set(map(_word, keys)) != set(storages):
            raise Refused("lists other stored parts than its tensors use")
        if len(keys) != len(storages):
            raise Refused("lists a stored part twice")
        for key in keys:
            dtype, count = storages[key]
            header = file.read(8)
            size = count * dtype.itemsize
            if len(header) < 8 or struct.unpack("<q", header)[0] != count:
                raise Refused(f"is truncated or damaged before its stored part {key[:20]!r}")
            extents[key] = Extent(path, file.tell(), size)
            if file.tell() + size > file_bytes:
                raise Refused(
                    f"ends inside its stored part {key[:20]!r}; copy or download it again"
                )
            file.seek(size, 1)
    check_tree(tree, _LEAVES)
    return locate(tree)


def _word(key: Any) -> str:
    if not isinstance(key, str):
        raise Refused("lists stored parts that are not words")
    return key


class _Window:
    """The first `size` bytes from the file's position on, as a stream."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def readline(self, limit: int) -> bytes:
        data = self._file.readline(min(limit, self._left))
        self._left -= len(data)
        return data


def _bytes(extent: Extent) -> bytes:
    with open(extent.path, "rb") as file:
        file.seek(extent.start)
        return file.read(min(extent.size, 1 << 16))


def _checksum(extent: Extent) -> int:
    import zlib

    crc, left = 0, extent.size
    with open(extent.path, "rb") as file:
        file.seek(extent.start)
        while left and (part := file.read(min(left, 1 << 20))):
            crc, left = zlib.crc32(part, crc), left - len(part)
    return crc


def _members(path: Path) -> dict[str, Extent]:
    """Name → place of every member of a zip archive; only plainly stored members are accepted."""
    file_bytes = path.stat().st_size
    with open(path, "rb") as file:
        count, size, start = _directory(file, file_bytes)
        if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
            raise Refused("has an absurdly large table of contents")
        file.seek(start)
        directory = file.read(size)
        members: dict[str, Extent] = {}
        position = 0
        for _ in range(count):
            if position + _MEMBER.size > len(directory):
                raise Refused("has a damaged table of contents; copy or download it again")
            fields = _MEMBER.unpack_from(directory, position)
            names, extras, comments = fields[10:13]
            position += _MEMBER.size
            name = directory[position : position + names].decode("utf-8", "replace")
            extra = directory[position + names : position + names + extras]
            position += names + extras + comments
            if fields[0] != b"PK\x01\x02" or position > len(directory) or name in members:
                raise Refused("has a damaged table of contents; copy or download it again")
            if fields[3] & 0x1 or fields[4] != 0:
                raise Refused(
                    "is a compressed or encrypted archive; torch stores its parts plainly"
                )
            stored, real, local = _wide(extra, fields[8], fields[9], fields[16])
            members[name] = _member(file, start, path, (local, stored, real, fields[7]))
    return members


def _member(file: BinaryIO, limit: int, path: Path, place: tuple[int, int, int, int]) -> Extent:
    local, stored, real, crc = place
    file.seek(local)
    header = file.read(_LOCAL.size)
    if stored != real or len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise Refused("has a damaged table of contents; copy or download it again")
    *_, names, extras = _LOCAL.unpack(header)
    begin = local + _LOCAL.size + names + extras
    if begin + stored > limit:
        raise Refused("ends inside a stored part; copy or download it again")
    return Extent(path, begin, stored, crc)


def _wide(extra: bytes, stored: int, real: int, local: int) -> tuple[int, int, int]:
    """(stored, real, local) with the values a zip64 extra field replaces."""
    values = {"real": real, "stored": stored, "local": local}
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        data = extra[position + 4 : position + 4 + size]
        position += 4 + size
        if kind == 1:
            for name, value in values.items():
                if value == 0xFFFFFFFF:
                    if len(data) < 8:
                        raise Refused("has a damaged table of contents; copy or download it again")
                    values[name], data = int.from_bytes(data[:8], "little"), data[8:]
    return values["stored"], values["real"], values["local"]


def _directory(file: BinaryIO, file_bytes: int) -> tuple[int, int, int]:
    """(member count, bytes, start) of the central directory, from the end record."""
    tail_bytes = min(file_bytes, (1 << 16) + _END.size)
    file.seek(file_bytes - tail_bytes)
    tail = file.read(tail_bytes)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + _END.size > len(tail):
        raise Refused("is truncated (the archive's end is missing); copy or download it again")
    _, _, _, _, count, size, start, _ = _END.unpack_from(tail, found)
    if 0xFFFF == count or 0xFFFFFFFF in (size, start):
        locator = found - _END64_LOCATOR.size
        if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
            (_, _, place, _) = _END64_LOCATOR.unpack_from(tail, locator)
            file.seek(min(place, file_bytes))
            record = file.read(_END64.size)
            if len(record) == _END64.size and record[:4] == b"PK\x06\x06":
                *_, count, size, start = _END64.unpack(record)
    if start + size > file_bytes:
        raise Refused("has a damaged table of contents; copy or download it again")
    return count, size, start
