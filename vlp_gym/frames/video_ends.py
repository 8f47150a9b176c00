"""Find videos that were cut off, by what their containers say about their own length.

Counting frames would not do: a lossless cut shows fewer than its tables list, and a screen recorder has no steady rate.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

_ASF = ("3026b275", "3626b275", "90080033", "d329e2d6")  # header, data and two kinds of index, as their GUIDs begin
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675  # mkv's folders


def missing_end(file: BinaryIO, container: str) -> str:
    """Say which part of a video file is cut off or absent; "" where nothing shows it.

    A file whose container has no length and no end mark (an elementary stream, a transport stream, or a live recording
    that is cut exactly between two packets) cannot be told from a whole one.

    Args:
        file: open for reading.
        container: FFmpeg's name of its format, such as "matroska,webm".
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    names = set(container.split(","))
    if names & {"gif", "apng", "ogg"}:
        return {"gif": _gif, "apng": _png, "ogg": _ogg}[container](file)
    if "mpegts" in names:
        return _packets(file, size)
    walks = {"mov": _boxes, "matroska": _ebml, "avi": _riff, "asf": _objects, "flv": _tags, "mpeg": _packs}
    for name in names & set(walks):
        for part, end in walks[name](file):
            if end > size:
                return f"its {part} ends at byte {end:,} and the file at {size:,}"
    return ""


def _boxes(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """mp4 and mov: boxes of a length and a name."""
    start = 0
    while len(head := _at(file, start, 16)) >= 8:
        length, name = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:  # the length follows, in 64 bits
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8 or not name.isascii() or not name.decode().isprintable():  # up to the end, or no box
            return
        start += length
        yield f"part {name.decode()!r}", start


def _riff(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """avi: chunks named RIFF, of 0 bytes where the recorder never finished."""
    start = 0
    while (head := _at(file, start, 8))[:4] == b"RIFF" and len(head) == 8 and head[4:] != bytes(4):
        start += 8 + struct.unpack("<I", head[4:])[0]
        yield "part 'RIFF'", start - 8  # some writers count these 8 bytes as well
        start += start % 2


def _objects(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """wmv and asf: objects of a GUID and a length."""
    start = 0
    while len(head := _at(file, start, 24)) == 24 and head[:4].hex() in _ASF:
        length = struct.unpack("<Q", head[16:])[0]
        if length < 24:  # a live recording
            return
        start += length
        yield "last object", start


def _tags(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """flv: tags, each with its length again behind it."""
    start = 4 + int.from_bytes(_at(file, 5, 4), "big")
    while head := _at(file, start, 4):
        if head[0] & 0x1F not in (8, 9, 18):  # sound, picture, script
            return
        start += 11 + int.from_bytes(head[1:].ljust(3, b"\0"), "big") + 4
        yield "last tag", start


def _packs(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """mpeg program streams: start codes, each with a length behind it."""
    start = 0
    while (head := _at(file, start, 14))[:3] == b"\0\0\1" and len(head) > 3:
        if head[3] == 0xBA:
            start += 14 + (head[13] & 7) if len(head) == 14 and head[4] >> 6 == 1 else 12
        elif head[3] > 0xBA:
            start += 6 + int.from_bytes(head[4:6].ljust(2, b"\0"), "big")
        else:  # 0xB9, the end
            return
        yield "last packet", start


def _ebml(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """mkv and webm: elements of an id and a length, nested; a live recording leaves the length of folders unknown."""
    start, segment_end = 0, 2**63
    while start < segment_end and (head := _at(file, start, 12)):
        of_id = 9 - head[0].bit_length()  # bytes, told by leading zeros
        of_length = 9 - head[of_id].bit_length() if of_id < len(head) else 1
        if of_id > 4 or of_length > 8:  # no element
            return
        name = int.from_bytes(head[:of_id], "big")
        length = max(0, int.from_bytes(head[of_id : of_id + of_length], "big") - (1 << 7 * of_length))
        known = length < (1 << 7 * of_length) - 1
        start += of_id + of_length
        yield "last element", start + length * known
        if name == _SEGMENT and known:
            segment_end = start + length
        if name not in (_SEGMENT, _CLUSTER):
            start += length


def _packets(file: BinaryIO, size: int) -> str:
    """Transport streams: packets of one length, each with the byte 0x47 in front."""
    head = _at(file, 0, 2048)
    for length, lead in ((188, 0), (192, 4), (204, 0)):
        for start in range(min(length, len(head))):
            marks = head[start + lead :: length]
            if len(marks) > 1 and set(marks) == {0x47}:
                odd = (size - start) % length
                return f"its last packet has {odd} of {length} bytes" if odd else ""
    return ""


def _gif(file: BinaryIO) -> str:
    absent = "its end mark (3B) is absent"
    file.seek(0)
    head = file.read(13)
    if len(head) < 13:
        return absent
    file.seek(_table(head[10]), os.SEEK_CUR)
    while kind := file.read(1):
        if kind == b"\x3b":
            return ""
        if kind == b"\x2c":  # a picture
            place = file.read(9)
            if len(place) < 9:
                break
            file.seek(_table(place[8]) + 1, os.SEEK_CUR)
        elif kind == b"\x21":  # an extension
            file.seek(1, os.SEEK_CUR)
        else:
            continue
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], os.SEEK_CUR)
    return absent


def _table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _png(file: BinaryIO) -> str:
    start = 8
    while len(head := _at(file, start, 8)) == 8:
        start += 12 + int.from_bytes(head[:4], "big")
        if head[4:] == b"IEND":
            return ""
    return "its end mark (IEND) is absent"


def _ogg(file: BinaryIO) -> str:
    start, open_streams = 0, set()
    while (head := _at(file, start, 282))[:4] == b"OggS" and len(head) > 26:
        if head[5] & 4:
            open_streams.discard(head[14:18])
        elif head[5] & 2:
            open_streams.add(head[14:18])
        start += 27 + head[26] + sum(head[27 : 27 + head[26]])
    cut = open_streams or start > file.seek(0, os.SEEK_END)
    return "its last page is cut off or absent" if cut else ""


def _at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)
