/** Proves that what fails or is aborted half-way leaves nothing behind, and that a long prompt can be broken off. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

import { load } from "../diffuse.mjs";
import { folderFiles } from "../node-files.mjs";
import { encodeChunks } from "../prompt-encoding.mjs";
import { TEXT, withText } from "./bundles.mjs";

/** ONNX Runtime, and how many of its sessions are open. */
function counted() {
  const open = new Set();
  const create = async (...words) => {
    const session = await ort.InferenceSession.create(...words);
    const release = session.release.bind(session);
    open.add(session);
    session.release = async () => {
      open.delete(session);
      await release();
    };
    return session;
  };
  return { open, own: { ...ort, InferenceSession: { create } } };
}

test("graphs that were open when another failed, or loading was aborted, are released", withText, async () => {
  const { open, own } = counted();
  for (const stop of [(ending) => ending.abort(), () => assert.fail("half-way")]) {
    const ending = new AbortController();
    let most = 0;
    const onProgress = ({ stage, file }) => {
      most = Math.max(most, open.size);
      if (stage === "read" && file.startsWith("unet")) stop(ending);
    };
    const options = { tokenizer: Tokenizer, threads: 1, signal: ending.signal, onProgress };
    await assert.rejects(load(folderFiles(TEXT), own, options));
    assert.deepEqual([most, open.size], [1, 0]); // the text encoder was there
  }
  const pipeline = await load(folderFiles(TEXT), own, { tokenizer: Tokenizer, threads: 1 });
  assert.equal(open.size, 3);
  await pipeline.dispose();
  assert.equal(open.size, 0);
});

test("who aborts while a long prompt is read is heard before its next chunk", async () => {
  const ending = new AbortController();
  let read = 0;
  const encoder = {
    async run({ input_ids: { dims } }) {
      read += 1;
      if (read === 3) setTimeout(() => ending.abort()); // from outside, as a message comes
      return { last_hidden_state: { data: new Float32Array(2 * dims[1]), dims: [1, dims[1], 2] } };
    },
  };
  const chunks = new Array(100).fill({ ids: [0, 1, 2], weights: [1, 1, 1] });
  await assert.rejects(encodeChunks(encoder, chunks, 0, 2, ending.signal), { name: "AbortError" });
  assert.ok(read >= 3 && read < 10, `${read} chunks were read`);
  assert.deepEqual((await encodeChunks(encoder, chunks, 0, 2)).dims, [1, 300, 2]);
});
