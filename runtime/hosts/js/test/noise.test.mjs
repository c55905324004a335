/** Proves that noise is what docs/bundle.md specifies: published numbers of Philox, and the Python package's. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { drawEach, mersenneWords, noiseGenerator, philox4x32, philoxWords } from "../noise.mjs";

const vectors = JSON.parse(readFileSync(new URL("vectors.json", import.meta.url), "utf8"));
const ALL = 0xffffffff;

test("Philox 4x32-10 gives the known answers of Random123", () => {
  const hex = (words) => words.map((word) => word.toString(16).padStart(8, "0")).join(" ");
  assert.equal(hex(philox4x32([0, 0, 0, 0], [0, 0])), "6627e8d5 e169c58d bc57ac4c 9b00dbd8");
  assert.equal(hex(philox4x32([ALL, ALL, ALL, ALL], [ALL, ALL])), "408f276d 41c83b0e a20bc7c6 6d5451fd");
  const pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
  assert.equal(hex(philox4x32(pi, [0xa4093822, 0x299f31d0])), "d16cfe09 94fdcceb 5001e420 24126ea1");
});

test("seed 0 begins with the numbers that the web interfaces draw", () => {
  const published = [
    -0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564, -0.62285122, -0.32838709, -1.07454231,
    -0.36314407, -1.67105067, 2.26550497,
  ];
  const drawn = noiseGenerator("philox", 0n).draw(published.length);
  published.forEach((expected, i) => assert.ok(Math.abs(drawn[i] - expected) < 1e-6, `${drawn[i]} is not ${expected}`));
});

test("words are those of the Python package, to the bit", () => {
  assert.deepEqual([...philoxWords(2n ** 64n - 2n, 3, 4)], vectors.words.philox);
  assert.deepEqual([...mersenneWords(2n ** 32n + 1n, 700)].slice(-4), vectors.words.torch);
});

for (const { generator, seed, counts, values } of vectors.noise) {
  test(`${generator}: draws of ${counts.join(", ")} numbers with seed ${seed} are those of the Python package`, () => {
    const noise = noiseGenerator(generator, BigInt(seed));
    const draws = counts.map((count) => noise.draw(count));
    values.forEach((expected, i) => assert.ok(Math.abs(draws.at(-1)[i] - expected) <= 2e-6));
    assert.equal(draws.at(-1).length, values.length);
  });
}

test("an image's noise does not depend on the images beside it", () => {
  const generators = () => [3n, 4n].map((seed) => noiseGenerator("philox", seed));
  assert.deepEqual([...drawEach(generators(), 5)].slice(5), [...noiseGenerator("philox", 4n).draw(5)]);
});
