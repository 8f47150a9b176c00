"""Mutations of bytes, JSON documents and safetensors files, drawn from a generator."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, -(10**30), 0.0, -0.5, 1e308, 1e-320, float("nan"), float("inf"),
    "", " ", "\ud800", "\x00", "x" * 100_000, "../../etc/passwd", "/dev/zero", "__import__('os')", "3", [], {}, [[]],
    [None], {"": 0}, ["a", 1], {"auto_map": {"AutoModel": "evil.Evil"}}, list(range(10_000)),
)  # fmt: skip


def bytes_of(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Damage bytes in one of the ways in which files are damaged."""
    kind = ("flip", "cut", "zero", "insert", "repeat", "noise", "empty", "append")[rng.integers(8)]
    at = int(rng.integers(max(len(data), 1)))
    run = int(rng.integers(1, 64))
    if kind == "flip" and data:
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 9))):
            changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        return bytes(changed), "flip"
    if kind == "empty":
        return b"", kind
    new = {
        "cut": data[:at],
        "zero": data[:at] + bytes(run) + data[at + run :],
        "insert": data[:at] + rng.bytes(run) + data[at:],
        "repeat": data[: at + run] + data[at:],
        "noise": data[:at] + rng.bytes(run) + data[at + run :],
        "append": data + rng.bytes(run),
        "flip": data,
    }[kind]
    return new, f"{kind} at {at}"


def document(value: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """Change one place of a JSON value: another value, removed, added, doubled, nested deeply or renamed."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places:
        return HOSTILE[rng.integers(len(HOSTILE))], "all"
    holder, key, path = places[rng.integers(len(places))]
    kind = ("value", "value", "value", "remove", "add", "near", "near", "deep", "rename", "swap")[rng.integers(10)]
    if kind == "value":
        holder[key] = HOSTILE[rng.integers(len(HOSTILE))]
    elif kind == "remove":
        del holder[key]
    elif kind == "add":
        if isinstance(holder, dict):
            holder[f"{key}_2"] = HOSTILE[rng.integers(len(HOSTILE))]
        else:
            holder.insert(int(rng.integers(len(holder) + 1)), HOSTILE[rng.integers(len(HOSTILE))])
    elif kind == "near":
        holder[key] = _near(holder[key], rng)
    elif kind == "deep":
        nested: Any = 0
        for _ in range(int(rng.choice([5, 400, 900]))):
            nested = [nested] if rng.integers(2) else {"a": nested}
        holder[key] = nested
    elif kind == "rename" and isinstance(holder, dict):
        holder[key.swapcase()] = holder.pop(key)
    else:
        other, name, path2 = places[rng.integers(len(places))]
        try:
            holder[key], other[name] = other[name], holder[key]
            json.dumps(value)  # a swap with its own part makes a circle
        except (ValueError, KeyError, IndexError, RecursionError):
            return {}, f"empty, for {path}"
        path = f"{path} with {path2}"
    return value, f"{kind} {path}"


def tensors(path: Path, rng: np.random.Generator) -> str:
    """Change a safetensors file in place: values, types, shapes, names, offsets, or plain bytes."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    body = bytearray(data[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    kind = ("values", "values", "values", "dtype", "shape", "drop", "rename", "add", "offsets", "bytes", "first")[
        rng.integers(11)
    ]
    if not names or kind == "bytes":
        new, what = bytes_of(data, rng)
        path.write_bytes(new)
        return f"{path.name}: {what}"
    name = names[rng.integers(len(names))]
    entry = header[name]
    start, end = entry["data_offsets"]
    what = f"{kind} {name}"
    if kind in ("values", "first") and end > start:
        kinds = {
            "F64": "<f8",
            "F32": "<f4",
            "F16": "<f2",
            "I64": "<i8",
            "I32": "<i4",
            "I16": "<i2",
            "I8": "i1",
            "U8": "u1",
        }
        numbers = np.frombuffer(bytes(body[start:end]), kinds.get(entry["dtype"], "u1")).copy()
        hostile = [0, 1, -1, 0.5, 255, -(2**31), 2**31 - 1, np.nan, np.inf, -np.inf, 1e30, 1.0001, -1e-3]
        new_value = hostile[rng.integers(len(hostile))]
        with np.errstate(all="ignore"):
            value = np.array(new_value).astype(numbers.dtype)
        numbers[0 if kind == "first" else int(rng.integers(len(numbers)))] = value
        if rng.integers(8) == 0:
            numbers[:] = value
        body[start:end] = numbers.tobytes()
        what += f" = {new_value}"
    elif kind == "dtype":
        entry["dtype"] = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "I8", "BOOL", "F8_E4M3", "X")[
            rng.integers(11)
        ]
        if rng.integers(2):  # consistent: the same bytes in fewer or more numbers
            width = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"], 1)
            entry["shape"] = [(end - start) // width]
        what += f" {entry['dtype']}"
    elif kind == "shape":
        shape = list(entry["shape"])
        change = rng.integers(4)
        if change == 0 and shape:
            shape = [int(np.prod(shape))]
        elif change == 1:
            shape = [1, *shape]
        elif change == 2 and len(shape) > 1:
            shape = shape[::-1]
        else:
            shape = [int(x) for x in rng.choice([0, 1, 2, 2**31, 2**62], size=int(rng.integers(0, 4)))]
        entry["shape"] = shape
        what += f" {shape}"
    elif kind == "drop":
        del header[name]
    elif kind == "rename":
        header[f"{name}_"] = header.pop(name)
    elif kind == "add":
        header["extra"] = {**entry, "data_offsets": [len(body), len(body) + end - start]}
        body += body[start:end]
    else:
        entry["data_offsets"] = [int(x) for x in rng.choice([0, 1, start, end, len(body), 2**40], size=2)]
        what += f" {entry['data_offsets']}"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))
    return f"{path.name}: {what}"


def _places(value: Any, path: str = "") -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key, f"{path}/{key}"
        yield from _places(item, f"{path}/{key}")


def _near(value: Any, rng: np.random.Generator) -> Any:
    """A value of the same kind that may be out of range."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return int(rng.choice([value - 1, value + 1, -value, value * 1000, 0, value * 10**9]))
    if isinstance(value, float):
        return float(rng.choice([value * -1, value * 1e6, value / 1e6, value + 1, 0.0]))
    if isinstance(value, str):
        return str(rng.choice([value + "x", value[:-1], value.upper(), value * 1000, "\u2800", value + "\x00"]))
    if isinstance(value, list):
        return value + value if rng.integers(2) else value[:-1]
    return value
