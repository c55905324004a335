/**
 * Proves that the arithmetic of a row and of a preview is the Python package's, and to the last rounding as specified.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { clipOriginal, combine, firstSample, guided } from "../arithmetic.mjs";
import { previewLatents, toUint8 } from "../image.mjs";

const vectors = JSON.parse(readFileSync(new URL("vectors.json", import.meta.url), "utf8"));
const float32 = (numbers) => Float32Array.from(numbers);

for (const [phi, expected] of Object.entries(vectors.guided.expected)) {
  test(`guidance rescaled by ${phi} is that of the Python package`, () => {
    const { uncond, cond, size } = vectors.guided;
    const made = guided(float32(uncond), float32(cond), 7.5, Number(phi), size);
    expected.forEach((value, i) => assert.ok(Math.abs(made[i] - value) <= 1e-6));
  });
}

test("clipping is that of the Python package, and changes nothing that is within", () => {
  const { sample, output, original } = vectors.clipped;
  const uncond = float32(vectors.guided.uncond);
  const [clippedOutput, clipped] = clipOriginal([1.25, -0.75], float32(sample), uncond, 0.8);
  output.forEach((value, i) => assert.ok(Math.abs(clippedOutput[i] - value) <= 1e-6));
  original.forEach((value, i) => assert.ok(Math.abs(clipped[i] - value) <= 1e-6));
  const within = clipped.filter((value) => Math.abs(value) < Math.fround(0.8)).length;
  const unchanged = clippedOutput.filter((value, i) => value === uncond[i]).length;
  assert.ok(unchanged === within && within > 0 && within < clipped.length);
});

test("a row is summed in float64 and rounded once; what has no weight need not be there", () => {
  // In float32 the first two would swallow the third.
  const terms = [float32([2 ** 24]), float32([-(2 ** 24)]), null, float32([0.25])];
  assert.deepEqual([...combine([1, 1, 0, 1], terms)], [0.25]);
  assert.throws(() => combine([1, 1, 1, 1], terms), /looks back further than its first row/);
  assert.deepEqual([...firstSample({ initial_scale: 0.1 }, float32([3]))], [Math.fround(0.1 * 3)]);
});

test("pixels are rounded, clipped, and put pixel by pixel", () => {
  const levels = [0.49, 1.51, 2.49, 254.51].map((level) => level / 127.5 - 1);
  assert.deepEqual([...toUint8(levels, [1, 2, 2]).data], [0, 2, 2, 255]);
  assert.deepEqual([...toUint8([-9, 9, 1, -1, 0, 1], [3, 1, 2]).data], [0, 255, 128, 255, 0, 255]);
});

test("a preview of latents is that of the Python package, and shows even what is no number", () => {
  const { weights, biases, latents, expected } = vectors.preview;
  const image = previewLatents({ weights, biases }, float32(latents), [4, 2, 3]);
  assert.deepEqual({ ...image, data: [...image.data] }, { data: expected, width: 3, height: 2, channels: 3 });
  const broken = previewLatents({ weights, biases }, float32(latents.map((x, i) => (i ? x : NaN))), [4, 2, 3]);
  assert.deepEqual([...broken.data.slice(0, 3)], [128, 128, 128]);
});
