/**
 * Proves that every bundle passes its conformance file, and that the check would notice: each expected value that is
 * looked at, moved by ten times its tolerance, makes exactly its own case fail. tests/test_check.py proves the same of
 * the Python package.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

import { check, largestDifference } from "../check.mjs";
import { BundleError } from "../diffuse.mjs";
import { folderFiles } from "../node-files.mjs";
import { readSafetensors } from "../safetensors.mjs";
import { CLASSES, TEXT, changed, withText } from "./bundles.mjs";

const CONFORMANCE = "conformance.safetensors";
const WRITE = { F32: "setFloat32", F64: "setFloat64", U8: "setUint8", U32: "setUint32", I64: "setBigInt64" };
const READ = { F32: "getFloat32", F64: "getFloat64", U8: "getUint8", U32: "getUint32", I64: "getBigInt64" };

async function outcomes(files) {
  const found = [];
  for await (const each of check(files, ort, { tokenizer: Tokenizer, threads: 1 })) found.push(each);
  return found;
}

/** A conformance file's bytes with its header changed, which must not become longer. */
function withHeader(bytes, change) {
  const size = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)));
  change(header);
  const text = JSON.stringify(header).padEnd(size);
  assert.equal(text.length, size);
  const copy = new Uint8Array(bytes);
  copy.set(new TextEncoder().encode(text), 8);
  return copy;
}

/** One case alone; others would only take time. */
function only(bytes, each) {
  return withHeader(bytes, (header) => (header.__metadata__.cases = JSON.stringify([each])));
}

/** The same file with an element of a tensor moved away from zero, so that no unsigned number goes below it. */
function moved(bytes, name, index, by) {
  const copy = new Uint8Array(bytes);
  const view = new DataView(copy.buffer);
  const size = Number(view.getBigUint64(0, true));
  const { dtype, data_offsets: offsets } = JSON.parse(new TextDecoder().decode(copy.subarray(8, 8 + size)))[name];
  const width = { F32: 4, F64: 8, U8: 1, U32: 4, I64: 8 }[dtype];
  const at = 8 + size + offsets[0] + index * width;
  const value = view[READ[dtype]](at, true);
  view[WRITE[dtype]](
    at,
    typeof value === "bigint" ? value + BigInt(by) : value > 100 && dtype === "U8" ? value - by : value + by,
    true,
  );
  return copy;
}

/** [name of the tensor, how far it has to move] of every expected value of a case. */
function expectedOf({ kind, outputs, tensors, tensor, sample, image, tolerance }) {
  if (kind === "graph") return Object.values(outputs).map((name) => [name, 10 * tolerance]);
  if (kind === "plan") return Object.values(tensors).map((name) => [name, 10 * tolerance]);
  if (kind === "noise") return [[tensor, 10 * tolerance]];
  if (kind === "picture")
    return [
      [sample, 10 * tolerance],
      [image, 10],
    ]; // levels, of which one may differ
  return [[tensor, 1]]; // bits and tokens are compared exactly
}

for (const [name, folder, options] of [
  ["classes", CLASSES, {}],
  ["text", TEXT, withText],
]) {
  test(`a bundle of ${name} passes`, options, async () => {
    const found = await outcomes(folderFiles(folder));
    assert.deepEqual(
      found.filter(({ passed }) => !passed),
      [],
    );
    assert.ok(found.length > 10);
  });

  test(`in a bundle of ${name} no expected value can move by ten times its tolerance unnoticed`, options, async () => {
    const bytes = new Uint8Array(readFileSync(join(folder, CONFORMANCE)));
    const { tensors, metadata } = readSafetensors(bytes, CONFORMANCE);
    let looked = 0;
    for (const each of JSON.parse(metadata.cases)) {
      const alone = only(bytes, each);
      for (const [tensor, by] of expectedOf(each)) {
        const last = tensors.get(tensor).data.length - 1;
        for (const index of new Set([0, Math.floor(last / 3), last])) {
          const found = await outcomes(changed(folder, { [CONFORMANCE]: moved(alone, tensor, index, by) }));
          const failed = found.filter(({ passed }) => !passed);
          assert.equal(failed.length, 1, `${each.kind} ${tensor}[${index}] + ${by}`);
          looked += 1;
        }
      }
    }
    assert.ok(looked > 20);
  });
}

test("another shape, and what is no number, is an infinite difference", () => {
  const of = (data, dims) => ({ data, dims });
  assert.equal(largestDifference(of([1, 2], [2]), of([1, 2.5], [2])), 0.5);
  assert.equal(largestDifference(of([1, 2], [2]), of([1, 2], [1, 2])), Infinity);
  assert.equal(largestDifference(of([1, NaN], [2]), of([1, NaN], [2])), Infinity);
  assert.equal(largestDifference(of([5n], [1]), of([3n], [1])), 2);
});

const MALFORMED = [
  [(cases) => (cases[0].kind = "dance"), /case 0: kind is "dance"; it must be one of graph, bits/],
  [(cases) => (cases[0].more = 1), /case 0 has unknown keys: "more"/],
  [(cases) => (cases[0].tolerance = null), /tolerance must be number, not null/],
  [(cases) => (cases[0].outputs = { x: "y" }), /case 0: outputs has "x"; there are out_sample/],
  [(cases) => delete cases[0].inputs.sample, /case 0 is malformed/],
  [(cases) => (cases[1].seed = "x"), /seed must be the digits of a whole number/],
  [(cases) => (cases[1].tensor = "missing"), /names the tensor "missing", which the file does not have/],
  [(cases) => cases.splice(0), /holds no cases/],
];

for (const [change, pattern] of MALFORMED) {
  test(`a malformed conformance file is one line: ${pattern.source}`, async () => {
    const bytes = new Uint8Array(readFileSync(join(CLASSES, CONFORMANCE)));
    const all = JSON.parse(readSafetensors(bytes, "").metadata.cases);
    const cases = [all.find(({ kind }) => kind === "graph"), all.find(({ kind }) => kind === "bits")];
    change(cases);
    const file = withHeader(bytes, (header) => (header.__metadata__.cases = JSON.stringify(cases)));
    const wrong = (error) =>
      error instanceof BundleError && pattern.test(error.message) && !error.message.includes("\n");
    await assert.rejects(outcomes(changed(CLASSES, { [CONFORMANCE]: file })), wrong);
  });
}

test("a file that is not there, or none, is one line", async () => {
  await assert.rejects(outcomes(changed(CLASSES, { [CONFORMANCE]: Uint8Array.of(1) })), /is not a safetensors file/);
});
