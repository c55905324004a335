/**
 * Where an ONNX file says that its weights lie, read before ONNX Runtime sees the file: runtime/external_data.py.
 *
 * A graph names files of its own choosing. So every tensor's external data is found and held against the files that the
 * bundle's manifest names. Only the few messages that can hold a tensor are walked, to a bounded depth.
 */

import { BundleError, quoted } from "./errors.mjs";
import { Reader } from "./protobuf.mjs";

// Field numbers of onnx.proto that lead to a tensor, by message: number -> message.
const CHILDREN = {
  ModelProto: { 7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto" },
  TrainingInfoProto: { 1: "GraphProto", 2: "GraphProto" },
  FunctionProto: { 7: "NodeProto", 11: "AttributeProto" },
  GraphProto: { 1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto" },
  NodeProto: { 5: "AttributeProto" },
  AttributeProto: {
    5: "TensorProto",
    6: "GraphProto",
    10: "TensorProto",
    11: "GraphProto",
    22: "SparseTensorProto",
    23: "SparseTensorProto",
  },
  SparseTensorProto: { 1: "TensorProto", 2: "TensorProto" },
  TensorProto: {},
};
const TENSOR = { name: 8, externalData: 13, dataLocation: 14 };
const ENTRY = { key: 1, value: 2 };
const MAX_DEPTH = 100; // where protobuf's own parsers stop too

/**
 * Hold a graph's external data against the files it may use.
 *
 * @param model bytes of the ONNX file.
 * @param where what messages call it.
 * @param sizes Map of the bytes of each file that the manifest names, by the name the graph must use.
 */
export function checkExternalData(model, where, sizes) {
  for (const { tensor, location, offset, length } of findExternalData(model, where)) {
    const size = sizes.get(location);
    if (size === undefined) {
      const allowed = sizes.size ? `only in ${[...sizes.keys()].sort().join(", ")}` : "only in the graph's own file";
      throw new BundleError(`${where}: tensor ${quoted(tensor)} lies in ${quoted(location)}; it may lie ${allowed}`);
    }
    if (offset + length > size) {
      throw new BundleError(
        `${where}: tensor ${quoted(tensor)} lies at bytes ${offset} to ${offset + length} of ${location}, ` +
          `which has ${size}; fetch both again`,
      );
    }
  }
}

/** Every tensor of an ONNX file whose data is elsewhere: initializers, attributes, subgraphs, functions. */
function* findExternalData(model, where) {
  const reader = new Reader(where);
  const pending = [["ModelProto", model, 1]];
  while (pending.length) {
    const [message, data, depth] = pending.pop();
    if (depth > MAX_DEPTH) {
      throw new BundleError(`${where} nests more than ${MAX_DEPTH} levels deep; it is no graph of a network`);
    }
    const parts = [];
    for (const [number, value] of reader.fields(data)) {
      const child = CHILDREN[message][number];
      if (child) pending.push([child, reader.message(value), depth + 1]);
      else if (message === "TensorProto" && Object.values(TENSOR).includes(number)) parts.push([number, value]);
    }
    if (message === "TensorProto") yield* tensorData(parts, reader);
  }
}

/** The external data of one tensor, if it has any. */
function* tensorData(parts, reader) {
  const of = (wanted) => parts.filter(([number]) => number === wanted).map(([, value]) => value);
  const tensor = of(TENSOR.name)
    .map((value) => reader.text(value))
    .join("");
  const entries = new Map();
  for (const value of of(TENSOR.externalData)) {
    const [key, said] = entry(reader.message(value), reader);
    if (entries.has(key)) throw new BundleError(`${reader.where}: tensor ${quoted(tensor)} says ${quoted(key)} twice`);
    entries.set(key, said);
  }
  if (of(TENSOR.dataLocation).some(Boolean) && !entries.has("location")) {
    throw new BundleError(`${reader.where}: tensor ${quoted(tensor)} lies in another file and does not say in which`);
  }
  if (!entries.size) return;
  const whole = (key) => wholeNumber(entries.get(key) ?? "0", tensor, reader.where);
  yield { tensor, location: entries.get("location") ?? "", offset: whole("offset"), length: whole("length") };
}

/** Key and value, each said once: protobuf would let the last one win, and readers differ. */
function entry(data, reader) {
  const said = [...reader.fields(data)].map(([number, value]) => [number, reader.text(value)]);
  const numbers = said.map(([number]) => number).sort();
  if (numbers.length !== 2 || numbers[0] !== ENTRY.key || numbers[1] !== ENTRY.value) {
    throw new BundleError(`${reader.where} has external data that is not one key with one value`);
  }
  const byNumber = new Map(said);
  return [byNumber.get(ENTRY.key), byNumber.get(ENTRY.value)];
}

function wholeNumber(said, tensor, where) {
  if (!/^[0-9]{1,19}$/.test(said)) {
    throw new BundleError(
      `${where}: tensor ${quoted(tensor)} has ${quoted(said.slice(0, 40))} for an offset or a length`,
    );
  }
  return Number(said);
}
