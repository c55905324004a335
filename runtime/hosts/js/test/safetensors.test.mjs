/** Proves that the reader of tensors takes what its format allows, and nothing else. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { BundleError } from "../errors.mjs";
import { readSafetensors } from "../safetensors.mjs";

/** A file of a header, an object or text, and of so many bytes behind it. */
function file(header, bytes = [], size = undefined) {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const whole = new Uint8Array(8 + text.length + bytes.length);
  new DataView(whole.buffer).setBigUint64(0, size ?? BigInt(text.length), true);
  whole.set(text, 8);
  whole.set(bytes, 8 + text.length);
  return whole;
}

const of = (dtype, shape, begin, end) => ({ dtype, shape, data_offsets: [begin, end] });
const FLOAT = [0, 0, 0x80, 0x3f]; // 1.0

test("tensors of every kind are read, in whatever order, also from the middle of a buffer", () => {
  const header = {
    b: of("F32", [2], 8, 16),
    a: of("I64", [], 0, 8),
    c: of("U8", [3, 1], 16, 19),
    d: of("F64", [0], 19, 19),
  };
  const bytes = file({ ...header, __metadata__: { cases: "[]" } }, [
    255,
    ...new Array(7).fill(255),
    ...FLOAT,
    ...FLOAT,
    1,
    2,
    3,
  ]);
  const within = new Uint8Array(bytes.length + 3);
  within.set(bytes, 3);
  for (const each of [bytes, within.subarray(3), Buffer.from(bytes)]) {
    const { tensors, metadata } = readSafetensors(each, "file");
    assert.deepEqual(metadata, { cases: "[]" });
    assert.deepEqual(tensors.get("a"), { data: BigInt64Array.of(-1n), dims: [] });
    assert.deepEqual(tensors.get("b"), { data: Float32Array.of(1, 1), dims: [2] });
    assert.deepEqual(tensors.get("c"), { data: Uint8Array.of(1, 2, 3), dims: [3, 1] });
    assert.equal(tensors.get("d").data.length, 0);
  }
});

const BAD = {
  "shorter than its header's size": Uint8Array.of(1, 2, 3),
  "header claims 999999": file({}, [], 999999n),
  "header claims 18446744073709551615": file({}, [], 2n ** 64n - 1n),
  "header is not JSON": file("{"),
  "header is no object": file("[]"),
  "metadata is not strings": file({ __metadata__: { cases: 7 } }),
  "begins at 4, where 0 is next": file({ a: of("F32", [1], 4, 8) }, [...FLOAT, ...FLOAT]),
  "begins at 0, where 4 is next": file({ a: of("F32", [1], 0, 4), b: of("F32", [1], 0, 4) }, FLOAT),
  "goes beyond the end": file({ a: of("F32", [2], 0, 8) }, FLOAT),
  "another size than its shape": file({ a: of("F32", [2], 0, 4) }, FLOAT),
  "bytes are left over": file({ a: of("F32", [1], 0, 4) }, [...FLOAT, 0]),
  'is "BF16"; read are F64': file({ a: of("BF16", [2], 0, 4) }, FLOAT),
  'is "constructor"; read are': file({ a: of("constructor", [1], 0, 4) }, FLOAT),
  "is not well described": file({ a: of("F32", [-1], 0, 4) }, FLOAT),
};

for (const [message, bytes] of Object.entries(BAD)) {
  test(`a file is refused: ${message}`, () => {
    const why = (error) =>
      error instanceof BundleError &&
      error.message.startsWith("x is not a safetensors file (") &&
      error.message.includes(message);
    assert.throws(() => readSafetensors(bytes, "x"), why);
  });
}
