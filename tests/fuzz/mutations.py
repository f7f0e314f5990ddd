"""Inputs that nobody would write: whole files damaged, values replaced, programs forged."""

from __future__ import annotations

import json
import pickle
import random
import struct
from typing import Any

# What readers of numbers, texts and sizes stumble over.
TEXTS = [
    "",
    " ",
    "²",
    "٣",
    "\ud800",
    "é",
    "\u202e",
    "a" * 5000,
    "9" * 400,
    "-",
    "nan",
    "1e999",
    "../../x",
    "/etc/passwd",
    "${oc.env:HOME}",
    "${a}",
    "${",
    "%s{}{0}",
    "<b>&amp;",
    "\x00",
    "|",
    "`x`",
    "*x",
    "&a",
    "!!python/name:os.system",
    "0x",
    "true",
    "null",
]
NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320]
DOCUMENTED = [float("nan"), float("inf"), -float("inf")]  # what Python's JSON writes
_GLOBALS = [
    "os system",
    "builtins eval",
    "builtins getattr",
    "builtins bytes",
    "builtins list",
    "builtins dict",
    "builtins set",
    "builtins str",
    "builtins int",
    "builtins tuple",
    "collections OrderedDict",
    "collections defaultdict",
    "collections Counter",
    "copyreg _reconstructor",
    "copyreg __newobj__",
    "numpy dtype",
    "numpy ndarray",
    "numpy.core.multiarray _reconstruct",
    "numpy.core.multiarray scalar",
    "numpy.core.numeric _frombuffer",
    "_codecs encode",
    "torch FloatStorage",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "torch._tensor _rebuild_from_type_v2",
    "torch.storage _load_from_bytes",
    "argparse Namespace",
    "subprocess Popen",
    "torch float32",
]
_PLAIN = [
    b"(",
    b")",
    b"]",
    b"}",
    b"\x8f",
    b"N",
    b"\x88",
    b"0",
    b"1",
    b"2",
    b"a",
    b"e",
    b"s",
    b"u",
    b"t",
    b"l",
    b"d",
    b"R",
    b"R",
    b"R",
    b"b",
    b"b",
    b"\x81",
    b"\x92",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x90",
    b"\x91",
    b"\x93",
    b"\x94",
    b"Q",
    b"o",
    b"h\x00",
    b"h\x01",
    b"h\x02",
    b"q\x00",
    b"q\x01",
    b"Vx\n",
    b"S'b1'\n",
    b"U\x02f4",
    b"X\x01\x00\x00\x00<",
    b"K\x05",
    b"J\xff\xff\xff\xff",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x08" + b"\x7f" * 8,
    b"G" + b"\x7f" * 8,
    b"C\x04abcd",
    b"B\xff\xff\xff\x7f",
    b"\x8e" + b"\x7f" * 8,
    b"\x96" + b"\x00" * 7 + b"\x10",
    b"I9\n",
    b"P1\n",
    b"\x95" + b"\xff" * 8,
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with bytes changed, cut off, moved, repeated, or numbers in it replaced."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        size = len(found)
        if not size:
            return bytes(found)
        place, kind = rng.randrange(size), rng.randrange(9)
        length = min(rng.choice([1, 2, 8, 64, 512]), size - place)
        if kind <= 2:
            found[place] = rng.choice([0, 255, 127, 128, rng.randrange(256)])
        elif kind == 3:
            del found[place : place + length]
        elif kind == 4:
            found = found[:place]
        elif kind == 5:
            other = rng.randrange(size)
            found[other:other] = found[place : place + length]
        elif kind == 6:
            width = rng.choice(["<I", "<Q", "<H", ">I"])
            number = struct.pack(
                width,
                rng.choice([0, 1, 2**15, 2**31 - 1]) % 2**16
                if "H" in width
                else rng.choice([0, 1, 2**31 - 1, 2**32 - 1]),
            )
            found[place : place + len(number)] = number
        elif kind == 7:
            found[place:place] = rng.choice(TEXTS).encode(errors="surrogatepass")[:600]
        else:
            found[place : place + length] = bytes(length)
    return bytes(found)


def program(rng: random.Random) -> bytes:
    """A pickle of random instructions and names, of which some fit together."""
    parts = [b"\x80" + bytes([rng.choice([2, 4, 5])])]
    for _ in range(rng.choice([5, 20, 60, 200])):
        if rng.random() < 0.15:
            module, name = rng.choice(_GLOBALS).split()
            parts.append(f"c{module}\n{name}\n".encode())
        elif rng.random() < 0.1:
            parts.append(pickle.dumps(rng.choice([*TEXTS, *NUMBERS, (1, 2), [0], b"x"]), 2)[2:-1])
        else:
            parts.append(rng.choice(_PLAIN) * rng.choice([1, 1, 1, 3, 40]))
    return b"".join(parts) + b"."


def forged(rng: random.Random, make: Any) -> bytes:
    """A pickle whose own arguments, or those of arrays and tensors in it, are others."""
    data = make()
    for _ in range(rng.choice([1, 2, 5])):
        places = [i for i in range(len(data)) if data[i : i + 1] in (b"K", b"M", b"J", b"\x85")]
        if not places:
            break
        place = rng.choice(places)
        value = pickle.dumps(rng.choice([*TEXTS, *NUMBERS, (), None, [1]]), 2)[2:-1]
        width = {b"K": 2, b"M": 3, b"J": 5}.get(data[place : place + 1], 0)
        data = data[:place] + value + data[place + width :]
    return data


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, most of them out of place."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind < 4:
        return rng.choice([*NUMBERS, *DOCUMENTED])
    if kind < 6:
        return rng.choice([None, True, False, [], {}])
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.choice([1, 3, 30]))]
    return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.choice([1, 3]))}


def changed(tree: Any, rng: random.Random) -> Any:
    """A tree of values with one of them replaced, removed, renamed or wrapped."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice([1, 1, 2, 5])):
        node, path = tree, []
        while isinstance(node, (dict, list)) and node and (not path or rng.random() < 0.75):
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            path.append((node, key))
            node = node[key]
        if not path:
            continue
        holder, key = path[-1]
        kind = rng.randrange(8)
        if kind < 5:
            holder[key] = value(rng)
        elif kind == 5:
            del holder[key]
        elif kind == 6 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        else:
            for _ in range(rng.choice([1, 60, 400])):
                holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
            return tree
    return tree
