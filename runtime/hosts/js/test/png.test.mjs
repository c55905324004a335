/**
 * Proves that a PNG holds its picture and its texts, by a reader of its own here; Pillow reads them in
 * tests/test_hosts_js.py.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32, inflateSync } from "node:zlib";

import { encodePng } from "../png.mjs";
import { parameters, pictureTexts, recipeText } from "../recipe.mjs";

/** [type, data] of every chunk, their sums checked. */
function chunksOf(bytes) {
  assert.deepEqual([...bytes.subarray(0, 8)], [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  const [view, found] = [new DataView(bytes.buffer, bytes.byteOffset), []];
  for (let at = 8; at < bytes.length;) {
    const size = view.getUint32(at);
    const whole = bytes.subarray(at + 4, at + 8 + size);
    if (crc32) assert.equal(view.getUint32(at + 8 + size), crc32(whole)); // Node 20 has it from 20.15 on
    found.push([String.fromCharCode(...whole.subarray(0, 4)), whole.subarray(4)]);
    at += 12 + size;
  }
  return found;
}

/** Undo the filters of rows (ISO/IEC 15948, section 9). */
function unfiltered(data, stride, channels) {
  const rows = data.length / (stride + 1);
  const out = new Uint8Array(rows * stride);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < stride; x++) {
      const at = (dx, dy) => (x - dx < 0 || y - dy < 0 ? 0 : out[(y - dy) * stride + x - dx]);
      const [a, b, c] = [at(channels, 0), at(0, 1), at(channels, 1)];
      const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      const paeth = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
      out[y * stride + x] = data[y * (stride + 1) + 1 + x] + [0, a, b, (a + b) >> 1, paeth][data[y * (stride + 1)]];
    }
  }
  return out;
}

for (const channels of [1, 3]) {
  test(`a picture of ${channels} channels comes back`, async () => {
    const [width, height] = [37, 20];
    // Rows that suit different filters: noise, ramps, repetitions.
    const data = Uint8Array.from({ length: width * height * channels }, (_, i) => {
      const y = Math.floor(i / (width * channels));
      return y < 5 ? Math.imul(i, 2654435761) >>> 24 : y < 10 ? i : y < 15 ? (i % (width * channels)) * 7 : y * i;
    });
    const found = chunksOf(await encodePng({ data, width, height, channels }, { Comment: "gr\u00fcn", Title: "猫" }));
    assert.deepEqual(
      found.map(([type]) => type),
      ["IHDR", "tEXt", "iTXt", "IDAT", "IEND"],
    );
    assert.deepEqual([...found[0][1]], [0, 0, 0, width, 0, 0, 0, height, 8, channels === 1 ? 0 : 2, 0, 0, 0]);
    assert.equal(Buffer.from(found[1][1]).toString("latin1"), "Comment\0gr\u00fcn");
    assert.equal(Buffer.from(found[2][1]).toString("utf8"), "Title\0\0\0\0\0猫");
    const raw = inflateSync(found[3][1]);
    assert.deepEqual(unfiltered(raw, width * channels, channels), data);
    assert.ok(new Set(raw.filter((_, i) => i % (width * channels + 1) === 0)).size > 2, "one filter for all rows");
  });
}

test("a picture of another size than its bytes is refused", async () => {
  await assert.rejects(encodePng({ data: new Uint8Array(5), width: 2, height: 2, channels: 1 }), /has not 5 bytes/);
  await assert.rejects(encodePng({ data: new Uint8Array(8), width: 2, height: 2, channels: 2 }), /in 2 channels/);
});

const RECIPE = {
  ...{ bundle: "pocket", bundle_sha256: "ab".repeat(32), sampler: "dpmpp_2m", num_inference_steps: 10 },
  ...{ options: { sigma_spacing: "karras" }, guidance_scale: 7.5, seed: 2n ** 64n - 1n, rng: "philox" },
  ...{ width: 64, height: 32, clip_skip: 1, prompt: "a caf\u00e9 🙂", negative_prompt: "grey" },
};

test("a recipe is JSON in ASCII, with keys in order and seeds whole", () => {
  const text = recipeText(RECIPE);
  assert.match(text, /^[ -~]+$/);
  assert.match(text, /"seed": 18446744073709551615,/);
  assert.ok(text.startsWith('{"bundle": "pocket", "bundle_sha256": '));
  assert.equal(JSON.parse(text).prompt, RECIPE.prompt);
});

test("the web interfaces' words are there for prompts, and only for them", () => {
  const words =
    "a caf\u00e9 🙂\nNegative prompt: grey\nSteps: 10, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, " +
    "Seed: 18446744073709551615, Size: 64x32, Model hash: ababababab, Model: pocket, Clip skip: 2";
  assert.equal(parameters(RECIPE), words);
  assert.deepEqual(Object.keys(pictureTexts(RECIPE)), ["diffusion-anywhere", "parameters"]);
  const { prompt, ...ofClass } = RECIPE;
  assert.deepEqual(Object.keys(pictureTexts({ ...ofClass, class_label: 7 })), ["diffusion-anywhere"]);
});
