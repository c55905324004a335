/**
 * Tensors by name, from a file that a stranger may have made: the safetensors format, read as strictly as its own
 * library reads it. Nothing overlaps, nothing is left over, and no claim of a size is believed.
 */

import { BundleError, oneLine, quoted } from "./errors.mjs";

const MAX_HEADER_BYTES = 100_000_000;
const ARRAYS = {
  F64: Float64Array,
  F32: Float32Array,
  I64: BigInt64Array,
  U64: BigUint64Array,
  I32: Int32Array,
  U32: Uint32Array,
  I16: Int16Array,
  U16: Uint16Array,
  I8: Int8Array,
  U8: Uint8Array,
};

/**
 * Read a file's bytes.
 *
 * @returns `{ tensors, metadata }`: a Map from names to `{ data, dims }`, and the header's strings by name.
 */
export function readSafetensors(bytes, where) {
  const damaged = (why) => new BundleError(`${where} is not a safetensors file (${why})`);
  if (bytes.length < 8) throw damaged("it is shorter than its header's size");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headerSize = view.getBigUint64(0, true);
  if (headerSize > BigInt(Math.min(MAX_HEADER_BYTES, bytes.length - 8)))
    throw damaged(`its header claims ${headerSize} bytes`);
  const begin = 8 + Number(headerSize);
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, begin)));
  } catch (error) {
    throw damaged(`its header is not JSON: ${oneLine(error)}`);
  }
  if (header === null || typeof header !== "object" || Array.isArray(header)) throw damaged("its header is no object");
  const { __metadata__: metadata = {}, ...described } = header;
  if (
    metadata === null ||
    typeof metadata !== "object" ||
    Object.values(metadata).some((each) => typeof each !== "string")
  ) {
    throw damaged("its metadata is not strings");
  }
  const tensors = new Map();
  let end = 0;
  for (const [name, said] of inOrder(described, damaged)) {
    const [from, to] = said.data_offsets;
    if (from !== end) throw damaged(`tensor ${quoted(name)} begins at ${from}, where ${end} is next`);
    if (to > bytes.length - begin) throw damaged(`tensor ${quoted(name)} goes beyond the end`);
    const Numbers = ARRAYS[said.dtype];
    const count = said.shape.reduce((product, size) => product * size, 1);
    if (count * Numbers.BYTES_PER_ELEMENT !== to - from)
      throw damaged(`tensor ${quoted(name)} has another size than its shape`);
    // A copy begins where such numbers may.
    const data = new Numbers(new Uint8Array(bytes.subarray(begin + from, begin + to)).buffer);
    tensors.set(name, { data, dims: said.shape });
    end = to;
  }
  if (end !== bytes.length - begin) throw damaged("bytes are left over at the end");
  return { tensors, metadata };
}

/** What the header says of each tensor, checked, by where it begins. */
function inOrder(described, damaged) {
  const whole = (value) => Number.isSafeInteger(value) && value >= 0;
  for (const [name, said] of Object.entries(described)) {
    const known =
      said !== null && typeof said === "object" && Array.isArray(said.shape) && Array.isArray(said.data_offsets);
    if (!known || !said.shape.every(whole) || said.data_offsets.length !== 2 || !said.data_offsets.every(whole)) {
      throw damaged(`tensor ${quoted(name)} is not well described`);
    }
    if (!Object.hasOwn(ARRAYS, said.dtype)) {
      throw damaged(
        `tensor ${quoted(name)} is ${quoted(String(said.dtype))}; read are ${Object.keys(ARRAYS).join(", ")}`,
      );
    }
  }
  const [first, second] = [(each) => each[1].data_offsets[0], (each) => each[1].data_offsets[1]];
  return Object.entries(described).sort((a, b) => first(a) - first(b) || second(a) - second(b));
}
