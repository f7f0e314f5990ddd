"""The inert reader against torch, pickle and numpy on whole files, and against forged ones."""

from __future__ import annotations

import collections
import contextlib
import enum
import io
import pickle
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from intl_transfer.data.cifar import CifarSource
from intl_transfer.errors import UserError
from intl_transfer.files.pickles import MOST_WORK, PickleError
from intl_transfer.files.placeholders import Stored, module_state, plain
from intl_transfer.files.torch_files import loads, read_pickled


def assert_same(found, expected, place="it"):
    """Equal, of the same types, bit for bit; tensors also by strides and by what they share."""
    assert type(found) is type(expected), place
    if isinstance(expected, torch.Tensor):
        facts = [
            (t.dtype, t.shape, t.stride(), t.storage_offset(), t.requires_grad, t.is_conj())
            for t in (found, expected)
        ]
        assert facts[0] == facts[1], place
        bits = [bytes(t.untyped_storage()) for t in (found, expected)]
        assert bits[0] == bits[1], place
    elif isinstance(expected, np.ndarray | np.generic):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), place
        assert found.tobytes() == expected.tobytes(), place
    elif isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{place}[{index}]")
    elif isinstance(expected, float | complex):
        parts = [struct.pack("2d", complex(x).real, complex(x).imag) for x in (found, expected)]
        assert parts[0] == parts[1], place
    else:
        assert found == expected, place


class Forged:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def a_checkpoint() -> dict:
    base = torch.randn(6, 4)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    return {
        "model": network.state_dict(),
        "views": [base, base.t(), base[1:3], base[:, 1], torch.ones(1).expand(5)],
        "types": [torch.arange(5).to(kind) for kind in (torch.float16, torch.bfloat16, torch.uint8)]
        + [torch.tensor([True]), torch.randn(2, dtype=torch.cfloat), torch.zeros(0, 3)],
        "marked": torch.randn(3, dtype=torch.cfloat).conj(),
        "parameter": torch.nn.Parameter(base),
        "frozen": torch.nn.Parameter(base, requires_grad=False),
        "plain": {"a": 1, 2: -(2**70), "t": (1.5, None, True), "s": {1}, "bytes": b"\x00\xff"},
        "ordered": collections.OrderedDict(x=[1], y={}),
        "counted": collections.Counter("aab"),
        "type": torch.float32,
        "size": torch.Size([1, 2]),
    }


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "before torch 1.6"])
def test_files_of_torch_are_read_as_torch_reads_them(tmp_path, new, mapped):
    file = tmp_path / "in.pt"
    torch.save(a_checkpoint(), file, _use_new_zipfile_serialization=new)
    expected = torch.load(file, weights_only=True)
    found = read_pickled(file, mapped, verified=True)
    assert_same(found.value, expected)
    assert found.value["model"]._metadata == expected["model"]._metadata
    assert found.names == ()
    addresses = {view.untyped_storage().data_ptr() for view in found.value["views"][:4]}
    assert len(addresses) == 1


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.complex_numbers()
)  # fmt: skip
_KEYS = st.text() | st.integers(-(2**63), 2**63) | st.tuples(st.integers(-9, 9), st.text())
_TYPES = (
    st_numpy.integer_dtypes(endianness="=") | st_numpy.floating_dtypes(sizes=(16, 32, 64))
    | st_numpy.boolean_dtypes() | st_numpy.complex_number_dtypes(sizes=(64, 128))
)  # fmt: skip
_ARRAYS = st_numpy.arrays(_TYPES, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4))
_VALUES = st.recursive(
    _SCALARS | _ARRAYS,
    lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner) | st.tuples(inner, inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(value=_VALUES, protocol=st.integers(0, 5), columns=st.booleans())
def test_plain_pickles_are_read_as_python_reads_them(value, protocol, columns):
    if columns:
        value = [value, np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4))]
    data = pickle.dumps(value, protocol)
    found = loads(data)
    assert_same(found.value, pickle.loads(data))
    assert found.names == ()


def test_tensors_in_plain_pickles():
    value = {"w": torch.randn(3, 4), "p": torch.nn.Parameter(torch.ones(2))}
    assert_same(loads(pickle.dumps(value)).value, value)


class Level(enum.Enum):
    LOW = 1


class Options:
    def __init__(self, rate):
        self.rate = rate


class Bag(dict):
    pass


def test_what_is_of_other_libraries_is_stored_and_never_made(monkeypatch):
    """Their classes could be made here, and are not."""
    value = {"level": Level.LOW, "options": Options(0.1), "bag": Bag(a=Bag(b=2)), "call": len}
    data = pickle.dumps(value)
    for kind in (Options, Bag):
        monkeypatch.setattr(kind, "__new__", None)
    found = loads(data)
    assert all(isinstance(stored, Stored) for stored in found.value.values())
    assert found.value["level"].arguments == (1,)
    assert plain(found.value["options"]) == {"rate": 0.1}
    assert plain(plain(found.value["bag"])["a"]) == {"b": 2}
    assert not any(map(callable, found.value.values()))
    assert f"{__name__}.Level" in found.names
    assert "builtins.len" in found.names


def test_a_state_never_becomes_attributes():
    """A dictionary whose `items` is a number would stop whoever goes through it."""
    state = {"items": 7, "_metadata": {"": {"version": 1}}}
    ordered = Forged(collections.OrderedDict, ([("a", 1)],), state)
    found = loads(pickle.dumps(ordered)).value
    assert list(found.items()) == [("a", 1)]
    assert found._metadata == {"": {"version": 1}}


def test_networks_in_networks_without_end_have_one():
    """Fifty levels, each of which holds the next one twice: 2^50 names."""
    inner = Stored("Module", ())
    inner.state = {"_parameters": {}, "_modules": {}}
    for _ in range(50):
        outer = Stored("Module", ())
        outer.state = {"_parameters": {}, "_modules": {"a": inner, "b": inner}}
        inner = outer
    inner.state["_modules"]["self"] = inner
    started = time.process_time()
    assert module_state(inner) == {}
    assert time.process_time() - started < 10


FORGED = {
    "more values than a file has": b"\x8f" * 5_000_000,
    "lists in lists": b"]" * 100_000 + b"a" * 99_999,
    "one list many times": b"]" + b"".join(b"(22222222222l" for _ in range(12)),
    "a text longer than the file": b"\x8d\x00\x00\x00\x00\x00\x01\x00\x00",
    "bytes longer than the file": b"\x96\x00\x00\x00\x00\x00\x01\x00\x00",
    "a number of many digits": b"\x8b" + struct.pack("<i", 10_000) + b"\x01" * 10_000,
    "a number of many decimal digits": b"I" + b"1" * 1_000_000 + b"\n",
    "many zeros": b"cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R",
    "a place in memory that is not": b"h\x07",
    "an empty stack": b"0",
    "a mark that is not": b"t",
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_forged_pickles_end_soon_and_in_little_memory(what):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(PickleError):
        loads(b"\x80\x02" + FORGED[what] + b".")
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_keys_that_are_slow_to_hash_are_refused():
    """Each tuple holds the one before twice: Python's hash of the last takes 2^60 steps."""
    program = b"\x80\x02)" + b"2\x86" * 60 + b"q\x00}h\x00Ns."
    with pytest.raises(PickleError, match="a key that is larger"):
        loads(program)
    chosen = [(a, b) for a in range(200) for b in range(100)]
    with pytest.raises(PickleError, match=f"more than {MOST_WORK:,}"):
        loads(pickle.dumps(dict.fromkeys(chosen)))


def rebuilt(offset=0, size=(2, 2), stride=(2, 1), numel=4) -> bytes:
    """A plain pickle of a tensor whose window is forged."""

    class Storage:
        def __reduce__(self):
            buffer = io.BytesIO()
            torch.save(
                torch.arange(float(numel)).storage(), buffer, _use_new_zipfile_serialization=False
            )
            return torch.storage._load_from_bytes, (buffer.getvalue(),)

    class Tensor:
        def __reduce__(self):
            arguments = (Storage(), offset, size, stride, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    return pickle.dumps(Tensor())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    "forged",
    [
        {"offset": 1},
        {"offset": -1},
        {"size": (2, 3)},
        {"stride": (2, 2)},
        {"stride": (-2, 1)},
        {"size": (2,)},
        {"size": (2**62, 2**62), "stride": (0, 0)},
        {"size": (10**12,), "stride": (0,)},
        {"size": ("2", 2)},
        {"size": [2, 2]},
        {"offset": True},
    ],
)
def test_windows_of_tensors_lie_in_their_storage(forged):
    assert_same(loads(rebuilt()).value, torch.arange(4.0).reshape(2, 2))
    with pytest.raises(PickleError):
        loads(rebuilt(**forged))


def test_cifar_with_a_type_of_references_is_refused(tmp_path):
    """numpy follows the addresses; so would anything that asks for such an array's numbers."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"a", b"b"]}, 2))
    fields = {"f": (np.dtype("O"), 0)}
    kind = Forged(np.dtype, ("V8",), (3, "|", None, ("f",), fields, 8, 1, 0))
    state = (1, (3,), kind, False, struct.pack("<3Q", *[0x4141414141414141] * 3))
    make = np.zeros(1).__reduce__()[0]
    labels = Forged(make, (np.ndarray, (0,), b"b"), state)
    train = {b"data": np.zeros((3, 3072), np.uint8), b"fine_labels": labels}
    (folder / "train").write_bytes(pickle.dumps(train, 2))
    with pytest.raises(UserError, match=r"train: expected 'fine_labels' to hold 3 class numbers"):
        CifarSource(tmp_path)


def archive(file, **changes) -> None:
    """A file of torch's, its records written again with some of them changed."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(100.0)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(file, "w") as new:
        for record in old.infolist():
            name = record.filename.partition("/")[2]
            kind = zipfile.ZIP_DEFLATED if changes.get("packed") == name else zipfile.ZIP_STORED
            data = changes.get(name, old.read(record))
            if data is not None:
                new.writestr(record.filename, data, kind)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data/0": b"\x00" * 399}, r"a storage of 100 numbers in 399 bytes"),
        ({"data/0": None}, r"no record 'data/0'"),
        ({"data.pkl": None}, r"an archive without a data\.pkl"),
        ({"packed": "data/0"}, r"'data/0' is compressed"),
        ({"byteorder": b"middle"}, r"an unknown byte order"),
    ],
)
def test_damaged_archives_are_named(tmp_path, changes, reason):
    archive(tmp_path / "whole.pt")
    assert_same(read_pickled(tmp_path / "whole.pt").value, {"w": torch.arange(100.0)})
    archive(tmp_path / "in.pt", **changes)
    with pytest.raises(PickleError, match=reason):
        read_pickled(tmp_path / "in.pt")


def test_numbers_of_other_machines(tmp_path):
    swapped = np.arange(100, dtype=">f4").tobytes()
    archive(tmp_path / "in.pt", **{"data/0": swapped, "byteorder": b"big"})
    assert_same(read_pickled(tmp_path / "in.pt", mapped=True).value, {"w": torch.arange(100.0)})


def test_a_flipped_bit_is_found_where_checksums_are_asked_for(tmp_path):
    file = tmp_path / "in.pt"
    torch.save({"w": torch.zeros(1000)}, file)
    data = bytearray(file.read_bytes())
    place = bytes(data).index(b"\x00" * 4000) + 2000
    data[place] = 1
    file.write_bytes(bytes(data))
    assert read_pickled(file).value["w"].any()
    with pytest.raises(PickleError, match=r"the checksum of its record 'in/data/0' is wrong"):
        read_pickled(file, verified=True)


@pytest.fixture(scope="module")
def whole_files():
    files = []
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": torch.ones(3), "b": [1, "x"]}, buffer, _use_new_zipfile_serialization=new)
        files.append(buffer.getvalue())
    return files


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damage_anywhere_is_read_or_named(tmp_path_factory, whole_files, data):
    damaged = bytearray(data.draw(st.sampled_from(whole_files)))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.pt"
    file.write_bytes(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
    with contextlib.suppress(PickleError):
        read_pickled(file, mapped=data.draw(st.booleans()))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_are_read_under_any_default_device(zipped, tmp_path):
    expected = {"a": torch.arange(6.0).view(2, 3), "none": torch.zeros(0), "p": torch.ones(2)}
    torch.save(expected, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with torch.device("meta"):
        found = read_pickled(tmp_path / "a.pth").value
    assert_same(found, expected)
