"""Proves that no tensor of an ONNX file lies where the manifest does not say, however the file is made.

What the walker finds is compared with what onnx's own parser finds, by its descriptors, in files made by onnx, in files
that hypothesis draws, and in files that were damaged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from runtime.errors import BundleError
from runtime.external_data import CHILDREN, ExternalData, check_external_data, find_external_data

SIZES = {"weights.data": 1000}


def tensor(name: str = "w", **entries: object) -> TensorProto:
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "weights.data"} | entries).items():
        made.external_data.add(key=key, value=str(value))
    return made


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def model_with(*initializers: TensorProto) -> bytes:
    return model_of(helper.make_graph([], "g", [], [], list(initializers))).SerializeToString()


def everywhere() -> bytes:
    """A tensor in each place where ONNX has room for one."""
    constant = helper.make_node("Constant", [], ["c"], value=tensor("attribute", offset=1))
    several = helper.make_node("Several", [], ["s"])
    several.attribute.append(helper.make_attribute("tensors", [tensor("first of several"), tensor("second")]))
    inner = helper.make_graph([constant], "then", [], [], [tensor("in a subgraph", offset=2)])
    branches = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    many = helper.make_node("Many", [], ["m"])
    many.attribute.append(helper.make_attribute("graphs", [inner]))
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[4])
    in_attribute = helper.make_node("Constant", [], ["d"], sparse_value=sparse)
    sparse_list = helper.make_node("Sparse", [], ["e"])
    sparse_list.attribute.append(
        onnx.AttributeProto(name="all", type=onnx.AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse])
    )
    nodes = [several, branches, many, in_attribute, sparse_list]
    model = model_of(helper.make_graph(nodes, "g", [], [], [tensor("initializer", offset=3, length=16)]))
    model.graph.sparse_initializer.append(sparse)
    function = helper.make_function("d", "F", [], ["c"], [constant], [helper.make_opsetid("", 20)])
    function.attribute_proto.append(helper.make_attribute("default", tensor("default of a function")))
    model.functions.append(function)
    training = model.training_info.add()
    training.initialization.initializer.append(tensor("initialization"))
    training.algorithm.initializer.append(tensor("algorithm"))
    return model.SerializeToString()


def reference(message: Any) -> Iterator[tuple[str, str]]:
    """Name and location of every external tensor, by protobuf's own descriptors."""
    if message.DESCRIPTOR.name == "TensorProto":
        for said in message.external_data:
            if said.key == "location":
                yield message.name, said.value
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for child in value if descriptor.is_repeated else [value]:
                yield from reference(child)


def found(model: bytes) -> list[tuple[str, str]]:
    return sorted((each.tensor, each.location) for each in find_external_data(model, "m.onnx"))


def test_every_way_from_a_model_to_a_tensor_is_walked() -> None:
    """The table of field numbers, made anew from onnx's descriptors."""

    def reaches(descriptor: Any, seen: tuple[str, ...] = ()) -> bool:
        if descriptor.name == "TensorProto":
            return True
        children = [field.message_type for field in descriptor.fields if field.message_type is not None]
        return any(child.name not in seen and reaches(child, (*seen, descriptor.name)) for child in children)

    pending, expected = [onnx.ModelProto.DESCRIPTOR], {}
    while pending:
        descriptor = pending.pop()
        if descriptor.name in expected:
            continue
        children = {} if descriptor.name == "TensorProto" else {f.number: f.message_type for f in descriptor.fields}
        leading = {number: child for number, child in children.items() if child is not None and reaches(child)}
        expected[descriptor.name] = {number: child.name for number, child in leading.items()}
        pending += leading.values()
    assert expected == CHILDREN


def test_tensors_are_found_wherever_onnx_has_room_for_them() -> None:
    model = everywhere()
    assert found(model) == sorted(reference(onnx.ModelProto.FromString(model)))
    assert len(set(found(model))) == 10
    check_external_data(model, "m.onnx", SIZES)
    with pytest.raises(BundleError, match=r"it may lie only in the graph's own file"):
        check_external_data(model, "m.onnx", {})


def test_offset_and_length_are_read() -> None:
    (said,) = find_external_data(model_with(tensor(offset=8, length=16, checksum="abc")), "m.onnx")
    assert said == ExternalData("w", "weights.data", 8, 16)
    (said,) = find_external_data(model_with(tensor()), "m.onnx")
    assert said == ExternalData("w", "weights.data", 0, None)


PLACES = ["", "..", "../weights.data", "/etc/passwd", "./weights.data", "sub/weights.data", "WEIGHTS.DATA"]
PLACES += ["weights.data\0", "C:\\weights.data", "..\\weights.data", "*/_ORT_MEM_ADDR_/*", "weights.data/"]


@pytest.mark.parametrize("location", PLACES)
def test_another_place_is_refused(location: str) -> None:
    with pytest.raises(BundleError, match=r"tensor 'w' lies in .* it may lie only in weights\.data") as error:
        check_external_data(model_with(tensor(location=location)), "m.onnx", SIZES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": 990, "length": 11}, "at bytes 990 to 1001 of weights.data, which has 1000"),
        ({"offset": 1001}, "at bytes 1001 to 1001 of weights.data, which has 1000"),
        ({"offset": 2**63 - 1, "length": 2**63 - 1}, "which has 1000"),
        ({"offset": 2**63}, "for an offset or a length"),
        ({"offset": -1}, "'-1' for an offset or a length"),
        ({"length": "1e3"}, "'1e3' for an offset or a length"),
        ({"length": "९"}, "for an offset or a length"),
        ({"offset": "9" * 5000}, "has a name of 5000 bytes"),
        ({"offset": ""}, "'' for an offset or a length"),
    ],
)
def test_a_range_outside_its_file_is_refused(entries: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError) as error:
        check_external_data(model_with(tensor(**entries)), "m.onnx", SIZES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_what_readers_would_read_differently_is_refused() -> None:
    twice = tensor()
    twice.external_data.add(key="location", value="other.data")
    with pytest.raises(BundleError, match="says 'location' twice"):
        check_external_data(model_with(twice), "m.onnx", SIZES)
    key_and_two_values = b"\x0a\x08location\x12\x0cweights.data\x12\x01x"  # of which the last would win
    field = bytes([13 << 3 | 2, len(key_and_two_values)]) + key_and_two_values
    with pytest.raises(BundleError, match="not one key with one value"):
        check_external_data(in_initializer(field), "m.onnx", SIZES)
    nowhere = TensorProto(name="w", data_location=TensorProto.EXTERNAL)
    with pytest.raises(BundleError, match="does not say in which"):
        check_external_data(model_with(nowhere), "m.onnx", SIZES)


def in_initializer(field: bytes) -> bytes:
    graph = bytes([5 << 3 | 2, len(field)]) + field
    return bytes([7 << 3 | 2, len(graph)]) + graph


def nested(levels: int) -> bytes:
    """Graphs in attributes of nodes of graphs: node, attribute, graph and again."""
    tags, inside = [7, *[1, 5, 6] * levels], b""
    for tag in reversed(tags):
        size, length = len(inside), b""
        while size > 0x7F:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        inside = bytes([tag << 3 | 2]) + length + bytes([size]) + inside
    return inside


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (nested(2000), "nests more than 100 levels deep"),
        (b"\x3a" + b"\xff" * 10 + b"\x01", "a number has more than ten bytes"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "goes beyond its end"),  # 2^64 - 1 bytes
        (b"\x3a\xff\xff\xff\xff\x07ab", "a field of 2147483647 bytes goes beyond its end"),
        (b"\x08", "it ends inside a number"),
        (b"\x09\x00", "a field of 8 bytes goes beyond its end"),
        (b"\x0b", "field 1 has wire type 3"),
        (b"\x38\x01", "a number where ONNX has a message"),
        (in_initializer(b"\x42\x01\xff"), "not UTF-8"),
        (b"\x08\x08" * (10**6 + 1), "has more than 1000000 fields"),
    ],
)
def test_hostile_files_are_one_line_at_once(data: bytes, message: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(BundleError) as error:
        check_external_data(data, "m.onnx", SIZES)
    assert message in str(error.value)
    assert str(error.value).startswith("m.onnx")
    assert "\n" not in str(error.value)
    assert time.perf_counter() - begin < 20


def test_a_file_cut_off_anywhere_is_refused_or_whole() -> None:
    model = everywhere()
    for end in range(len(model)):
        try:
            shorter = onnx.ModelProto.FromString(model[:end])
        except DecodeError:
            with pytest.raises(BundleError):
                found(model[:end])
        else:  # cut between two fields
            assert found(model[:end]) == sorted(reference(shorter))


names = st.text(max_size=8).filter(lambda name: "\0" not in name)


@given(
    st.lists(st.tuples(names, names, st.integers(0, 2**63 - 1), st.none() | st.integers(0, 2**63 - 1)), max_size=5),
    st.sampled_from(["initializer", "attribute", "subgraph"]),
)
def test_whatever_onnx_writes_is_read_back(tensors: list[tuple[str, str, int, int | None]], place: str) -> None:
    made = []
    for name, location, offset, length in tensors:
        entries = {"offset": offset} | ({} if length is None else {"length": length})
        made.append(tensor(name, location=location, **entries))
    if place == "initializer":
        model = model_with(*made)
    else:
        nodes = [helper.make_node("Constant", [], [str(i)], value=each) for i, each in enumerate(made)]
        graph = helper.make_graph(nodes, "g", [], [])
        outer = helper.make_graph([helper.make_node("If", ["x"], [], then_branch=graph)], "outer", [], [])
        model = model_of(graph if place == "attribute" else outer).SerializeToString()
    expected = [ExternalData(*each) for each in tensors]
    assert sorted(find_external_data(model, "m"), key=repr) == sorted(expected, key=repr)


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=6))
def test_damage_never_hides_a_tensor_from_the_walker(position: int, junk: bytes) -> None:
    """What onnx can still read of a damaged file, the walker sees too, or it refuses the file in one line."""
    model = bytearray(everywhere())
    position %= len(model)
    model[position : position + len(junk)] = junk
    assert_sees_all(bytes(model))


@given(st.binary(max_size=200))
def test_noise_is_refused_or_has_no_tensors_that_onnx_sees(data: bytes) -> None:
    assert_sees_all(data)


def assert_sees_all(data: bytes) -> None:
    mine: set[tuple[str, str]] | None = None
    try:
        mine = set(found(data))
    except BundleError as error:
        line = str(error)
    if mine is None:
        assert "\n" not in line
        return
    with contextlib.suppress(DecodeError):
        assert set(reference(onnx.ModelProto.FromString(data))) <= mine
