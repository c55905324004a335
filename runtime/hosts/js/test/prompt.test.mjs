/**
 * Proves that prompts become what they become in Python: their syntax, their ids by CLIP's tokenizer, chunks, weights,
 * warnings.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { Tokenizer } from "@huggingface/tokenizers";

import { Bundle } from "../bundle.mjs";
import { BundleError, RequestError } from "../errors.mjs";
import { folderFiles } from "../node-files.mjs";
import { weighted } from "../prompt-encoding.mjs";
import { parse } from "../prompt-syntax.mjs";
import { PromptTokenizer, texts } from "../prompt.mjs";
import { sha256 } from "../sha256.mjs";

const vectors = JSON.parse(readFileSync(new URL("vectors.json", import.meta.url), "utf8"));
const CLIP = fileURLToPath(new URL("../../../../training/stable_diffusion/tokenizer", import.meta.url));
const bytes = readFileSync(`${CLIP}/tokenizer.json`);

/** CLIP's tokenizer; `conditioning` and `entry` change what the manifest says of it. */
async function clipTokenizer(conditioning = {}, entry = {}, Class = Tokenizer) {
  const tokenizer = { file: "tokenizer.json", size: bytes.length, sha256: await sha256(bytes), ...entry };
  const ids = { bos_token_id: 49406, eos_token_id: 49407, pad_token_id: 49407, vocab_size: 49408 };
  const said = { kind: "text", tokenizer, max_length: 77, ...ids, known_words: null, ...conditioning };
  return PromptTokenizer.open(
    new Bundle(folderFiles(CLIP), { name: "clip", conditioning: said }, new Map(), ""),
    Class,
  );
}

const clip = await clipTokenizer();

/** A message with every kind of quote the same, since languages quote differently. */
function unquoted(message) {
  return message.replace(/['"]/g, "'").replaceAll("\\\\", "\\");
}

for (const { text, sections, notes } of vectors.syntax) {
  test(`${JSON.stringify(text)} is understood as in Python`, () => {
    const parsed = parse(text);
    const weights = (section) => section.map(({ text: words, weight }) => [words, weight]);
    assert.deepEqual(parsed.sections.map(weights), sections);
    assert.deepEqual(parsed.notes.map(unquoted), notes.map(unquoted));
  });
}

for (const { text, ids } of vectors.tokens) {
  test(`the ids of ${JSON.stringify(text.slice(0, 60))} are those of Python`, () => {
    assert.deepEqual(clip.ids(text), ids);
  });
}

for (const { text, ids, weights } of vectors.chunks) {
  test(`the chunks of a prompt of ${text.length} characters are those of Python`, () => {
    const chunks = clip.chunks(text);
    assert.deepEqual(
      chunks.map((chunk) => chunk.ids),
      ids,
    );
    assert.deepEqual(
      chunks.map((chunk) => chunk.weights),
      weights,
    );
  });
}

for (const { text, said } of vectors.warnings) {
  test(`what is not heard of ${JSON.stringify(text.slice(0, 60))} is said as in Python`, async () => {
    const tokenizer = await clipTokenizer({ known_words: vectors.known_words });
    const heard = [];
    tokenizer.chunks(text, (line) => heard.push(unquoted(line)));
    assert.deepEqual(heard, said.map(unquoted));
  });
}

test("a weighted chunk keeps its mean, and an unweighted one is left alone", () => {
  const { states, weights, expected } = vectors.weighted;
  const made = weighted(Float32Array.from(states), weights);
  expected.forEach((value, i) => assert.ok(Math.abs(made[i] - value) <= 1e-6));
  const same = Float32Array.from(states);
  assert.equal(
    weighted(
      same,
      weights.map(() => 1),
    ),
    same,
  );
});

test("what is no text is refused", () => {
  for (const prompt of [7, null, ["a", 7], "\ud83d alone", "x".repeat(10 ** 6 + 1)]) {
    assert.throws(() => texts(prompt), RequestError);
  }
  assert.deepEqual(texts("😀".repeat(10 ** 6)).length, 1); // characters, not halves of them
});

test("a tokenizer that is too large, damaged, absent or of another vocabulary is one line", async () => {
  const refused = async (pattern, kind, ...changes) => {
    await assert.rejects(clipTokenizer(...changes), (error) => error instanceof kind && pattern.test(error.message));
  };
  await refused(/at most 67108864 bytes/, BundleError, {}, { size: 2 ** 26 + 1 });
  await refused(/SHA-256/, BundleError, {}, { sha256: "0".repeat(64) });
  await refused(/where the manifest says 5/, BundleError, {}, { size: 5 });
  await refused(/give load the class Tokenizer/, RequestError, {}, {}, null);
  await refused(/gives id 267, but vocab_size is 100/, BundleError, { vocab_size: 100 });
  const Broken = class {
    constructor() {
      throw new Error("no such\nmodel");
    }
  };
  await refused(/not a tokenizer of the tokenizers library \(no such model\)$/, BundleError, {}, {}, Broken);
});
