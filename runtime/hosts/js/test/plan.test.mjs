/** Proves that plans from elsewhere are read as strictly as those of a manifest, and held against the model. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { openBundle } from "../bundle.mjs";
import { RequestError, readPlan } from "../diffuse.mjs";
import { folderFiles } from "../node-files.mjs";
import { checkPlan } from "../plan.mjs";
import { CLASSES } from "./bundles.mjs";

const { manifest } = await openBundle(folderFiles(CLASSES));

/** Text of the manifest's plan of ten steps, changed. */
function text(change = () => {}) {
  const plan = structuredClone(manifest.plans["ddim-10"]);
  change(plan);
  return JSON.stringify(plan);
}

test("a plan is known by the SHA-256 of its file, as bytes or as text", async () => {
  const expected = createHash("sha256").update(text()).digest("hex");
  assert.equal((await readPlan(text())).sha256, expected);
  const plan = await readPlan(Buffer.from(text()));
  assert.equal(plan.sha256, expected);
  assert.deepEqual(plan.weights, manifest.plans["ddim-10"].weights);
  checkPlan(manifest, plan);
});

const FILES = [
  ["", /the plan is not JSON/],
  ["[]", /a plan is a JSON object, not a list/],
  [7, /a plan is read from bytes or text, not from a number/],
  [new Uint8Array(2 ** 26 + 1), /at most 67108864 are read/],
  [text((p) => delete p.guidance), /lacks \[guidance\]/],
  [text((p) => (p.secret = 1)), /unknown keys \["secret"\]/],
  [text((p) => (p.timesteps = [])), /has no rows/],
  [text((p) => p.weights[4].push(1)), /weights must be finite numbers of shape \(10, 9\)/],
  [
    text().replace('"initial_scale":1', '"initial_scale":1e999'),
    /initial_scale is Infinity; it must be a finite number/,
  ],
  [text((p) => (p.guidance[2] = 1.5)), /guidance must lie in \[0, 1\]/],
  [text((p) => (p.num_inference_steps = 0)), /num_inference_steps is 0; it must be a whole number of at least 1/],
  [text((p) => (p.guidance_rescale = 2)), /guidance_rescale is 2; it must be a number from 0 to 1/],
  [text((p) => (p.clip_sample = 0)), /clip_sample is 0; it must be a number above 0, or null/],
  [text((p) => ((p.clip_sample = 1), (p.x0_weights[3][1] = 0))), /make nothing of the output/],
  [text((p) => (p.prediction_type = "guess")), /prediction_type "guess" is unknown/],
  [text((p) => (p.options = null)), /its options an object/],
];

FILES.forEach(([file, pattern], i) => {
  test(`file ${i} is no plan: ${pattern.source}`, async () => {
    await assert.rejects(readPlan(file), (error) => error instanceof RequestError && pattern.test(error.message));
  });
});

const OTHERS = [
  [(p) => (p.prediction_type = "v_prediction"), /is for v_prediction models; mnist-paper predicts epsilon/],
  [(p) => (p.options.strength = 0.5), /begins at an image \(strength 0\.5\), and there is none/],
  [
    (p) => (p.timesteps[0] = 400),
    /has timestep 400, but mnist-paper has 0 to 399; the plan was made for another model/,
  ],
  [
    (p) => (p.timesteps[4] += 3),
    /row 4 of the plan tells timestep 242 at sigma .* which mnist-paper has at timestep 239/,
  ],
  [(p) => (p.options.rescale_betas_zero_snr = true), /row 0 of the plan tells timestep 399 at sigma/],
];

for (const [change, pattern] of OTHERS) {
  test(`a plan of another model is refused: ${pattern.source}`, async () => {
    const plan = await readPlan(text(change));
    assert.throws(
      () => checkPlan(manifest, plan),
      (error) => error instanceof RequestError && pattern.test(error.message),
    );
  });
}

test("a timestep may be told rounded", async () => {
  checkPlan(
    manifest,
    await readPlan(text((p) => (p.timesteps = p.timesteps.map((timestep) => Math.max(0, timestep - 0.9))))),
  );
});
