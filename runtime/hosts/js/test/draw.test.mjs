/**
 * Proves that a pipeline draws what it is asked for and says what it cannot: steps, previews, results, batches, seeds,
 * cancelling. Whether the pictures are Python's is for check.test.mjs and tests/test_hosts_js.py.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

import { RequestError, load, readPlan } from "../diffuse.mjs";
import { folderFiles } from "../node-files.mjs";
import { CLASSES, TEXT, withText } from "./bundles.mjs";

const digits = await load(folderFiles(CLASSES), ort, { threads: 1 });
const words = TEXT && (await load(folderFiles(TEXT), ort, { threads: 1, tokenizer: Tokenizer }));
const FAST = { numInferenceSteps: 4, seed: 5 };
const SMALL = () => {
  const { factor } = words.manifest.latents;
  return { numInferenceSteps: 4, width: 9 * factor, height: 8 * factor };
};
after(() => Promise.all([digits.dispose(), words?.dispose()]));

const pixels = (images) => images.map(({ data }) => Buffer.from(data).toString("hex"));

async function refused(act, pattern) {
  await assert.rejects(
    async () => act(),
    (error) => {
      assert.ok(error instanceof RequestError, error.stack);
      assert.match(error.message, pattern);
      assert.doesNotMatch(error.message, /\n/);
      return true;
    },
  );
}

test("a call and its steps draw the same, to the bit", async () => {
  const called = await digits({ classLabels: [7, 2], ...FAST });
  const seen = [];
  let finished;
  for await (const step of digits.denoise({ classLabels: [7, 2], ...FAST })) {
    seen.push([step.row, step.rows, step.images, step.sample.dims, step.preview.length]);
    if (step.row < step.rows) await refused(() => step.result(), /step \d of 4 has no result/);
    else finished = await step.result();
  }
  assert.deepEqual(
    seen,
    [1, 2, 3, 4].map((row) => [row, 4, [0, 1], [2, 1, 28, 28], 2]),
  );
  assert.deepEqual(pixels(finished.images), pixels(called.images));
  assert.deepEqual(finished.sample, called.sample);
});

test("the result of the last step is there after the loop, and when nobody looks further", async () => {
  const called = await digits({ classLabels: 3, ...FAST });
  let last;
  for await (const step of digits.denoise({ classLabels: 3, ...FAST })) last = step;
  assert.deepEqual(pixels((await last.result()).images), pixels(called.images));
  for await (const step of digits.denoise({ classLabels: 3, ...FAST })) {
    last = step;
    if (step.row === step.rows) break;
  }
  assert.equal(await last.result(), await last.result());
  assert.deepEqual(pixels((await last.result()).images), pixels(called.images));
});

test("the preview of the last step of DDIM is the picture, and a picture is what its sample says", async () => {
  for await (const step of digits.denoise({ classLabels: 3, ...FAST })) {
    if (step.row < step.rows) continue;
    const { images, sample } = await step.result();
    assert.deepEqual(pixels(step.preview), pixels(images));
    const rounded = sample.data.map((x) => Math.max(0, Math.min(255, Math.round((x + 1) * 127.5))));
    assert.deepEqual([...images[0].data], [...rounded]);
  }
});

test("a picture depends on its seed, and not on the batch it is drawn in", async () => {
  const together = await digits({ classLabels: [1, 4, 4], ...FAST });
  const apart = await digits({ classLabels: [1, 4, 4], ...FAST, batchSize: 2 });
  const third = await digits({ classLabels: 4, ...FAST, seed: 7n });
  assert.deepEqual(pixels(apart.images), pixels(together.images));
  assert.deepEqual(pixels(third.images)[0], pixels(together.images)[2]);
  assert.notEqual(pixels(together.images)[1], pixels(together.images)[2]);
  assert.deepEqual(
    together.images.map(({ seed }) => seed),
    [5n, 6n, 7n],
  );
});

test("seeds go round at 2^64, and without one another is drawn", async () => {
  const { images } = await digits({ classLabels: [1, 1], numInferenceSteps: 4, seed: 2n ** 64n - 1n });
  assert.deepEqual(
    images.map(({ seed }) => seed),
    [2n ** 64n - 1n, 0n],
  );
  const drawn = await Promise.all([1, 2].map(() => digits({ classLabels: 1, numInferenceSteps: 4 })));
  assert.notEqual(drawn[0].images[0].seed, drawn[1].images[0].seed);
});

test("two calls at once do not disturb each other", async () => {
  const alone = await digits({ classLabels: 3, ...FAST });
  const [first, second] = await Promise.all([1, 2].map(() => digits({ classLabels: 3, ...FAST })));
  assert.deepEqual(pixels(first.images), pixels(alone.images));
  assert.deepEqual(pixels(second.images), pixels(alone.images));
});

test("progress is told row by row, over all batches", async () => {
  const told = [];
  await digits({ classLabels: [1, 2, 3], ...FAST, batchSize: 2, onProgress: (row, rows) => told.push([row, rows]) });
  assert.deepEqual(
    told,
    [1, 2, 3, 4, 5, 6, 7, 8].map((row) => [row, 8]),
  );
});

test("an abort stops between rows with its own reason, and the pipeline draws again", async () => {
  const stop = new AbortController();
  const told = [];
  const onProgress = (row) => {
    told.push(row);
    if (row === 2) stop.abort(new Error("enough"));
  };
  await assert.rejects(digits({ classLabels: 1, ...FAST, signal: stop.signal, onProgress }), /^Error: enough$/);
  assert.deepEqual(told, [1, 2]);
  await assert.rejects(digits({ classLabels: 1, ...FAST, signal: AbortSignal.abort() }), { name: "AbortError" });
  const timed = digits({ classLabels: new Array(32).fill(1), numInferenceSteps: 50, signal: AbortSignal.timeout(1) });
  await assert.rejects(timed, { name: "TimeoutError" });
  assert.equal((await digits({ classLabels: 1, ...FAST })).images.length, 1);
});

test("a plan is the manifest's, by steps or by name, or one that was read", async () => {
  assert.equal(digits.plan({}).num_inference_steps, 50);
  assert.equal(digits.plan({ plan: "ddim-6" }).timesteps.length, 6);
  const read = await readPlan(JSON.stringify(digits.manifest.plans["ddim-4"]));
  const [given, named] = [
    await digits({ classLabels: 1, seed: 5, plan: read }),
    await digits({ classLabels: 1, ...FAST }),
  ];
  assert.deepEqual(pixels(given.images), pixels(named.images));
  assert.equal(given.recipe.plan_sha256, read.sha256);
  assert.ok(!("plan_sha256" in named.recipe));
});

test("a row whose guidance is 0, or a scale of 1, asks the network once", async () => {
  const asked = [];
  const counting = {
    ...ort,
    InferenceSession: {
      async create(...given) {
        const session = await ort.InferenceSession.create(...given);
        const { inputMetadata, outputMetadata } = session;
        const run = (feeds) => (asked.push(feeds.sample.dims[0]), session.run(feeds));
        return { inputMetadata, outputMetadata, run, release: () => session.release() };
      },
    },
  };
  const pipeline = await load(folderFiles(CLASSES), counting, { threads: 1 });
  const value = structuredClone(digits.manifest.plans["ddim-4"]);
  value.guidance[1] = 0;
  await pipeline({ classLabels: 1, seed: 5, plan: await readPlan(JSON.stringify(value)) });
  assert.deepEqual(asked.splice(0), [2, 1, 2, 2]);
  await pipeline({ classLabels: 1, ...FAST, guidanceScale: 1 });
  assert.deepEqual(asked.splice(0), [1, 1, 1, 1]);
  await pipeline.dispose();
});

const WRONG = [
  [{}, /draws classes; give classLabels/],
  [{ classLabels: [] }, /there is no label to draw/],
  [{ classLabels: new Array(10 ** 6 + 1).fill(1) }, /the number of images is 1000001; it must be .* from 1 to 1000000/],
  [{ classLabels: [[1n]] }, /label a list is out of range/],
  [{ classLabels: "\x1b[31m\u200b\ud83d" }, /^label "\\u001b\[31m\\u200b\\ud83d" is out of range/],
  [{ classLabels: 11 }, /label 11 is out of range; mnist-paper has 0 to 9, and 10 for none/],
  [{ classLabels: "seven" }, /label "seven" is out of range/],
  [{ classLabels: 1, prompt: "a cat" }, /a request to mnist-paper has no "prompt"; there are classLabels/],
  [{ classLabels: 1, strength: 0.5 }, /has no "strength"/],
  [{ classLabels: 1, numInferenceSteps: 0 }, /numInferenceSteps is 0; it must be a whole number of at least 1/],
  [{ classLabels: 1, numInferenceSteps: 1.5 }, /numInferenceSteps is 1\.5/],
  [
    { classLabels: 1, numInferenceSteps: 7 },
    /has no plan "ddim-7"; it has ddim-4, .*; others are made by python -m runtime plan/,
  ],
  [{ classLabels: 1, sampler: "toString" }, /has no plan "toString-50"/],
  [{ classLabels: 1, plan: "ddim-4", numInferenceSteps: 4 }, /give either a plan or sampler and numInferenceSteps/],
  [
    { classLabels: 1, plan: { timesteps: [] } },
    /it must be the name of one of mnist-paper's, or what readPlan has read/,
  ],
  [{ classLabels: 1, seed: "seven" }, /seed is "seven"; give a whole number from 0 to 2\^64 - 1$/],
  [{ classLabels: 1, seed: -1 }, /seed is -1/],
  [{ classLabels: 1, seed: 1.5 }, /seed is 1\.5/],
  [{ classLabels: 1, seed: NaN }, /seed is NaN/],
  [{ classLabels: 1, seed: 2n ** 64n }, /seed is 18446744073709551616/],
  [{ classLabels: 1, seed: 2 ** 60 }, /seed is 1152921504606847000; .* \(above 2\^53 - 1 as a BigInt\)/],
  [{ classLabels: 1, guidanceScale: Infinity }, /guidanceScale is .*; it must be a finite number \(1 is off\)/],
  [{ classLabels: 1, guidanceScale: "3" }, /guidanceScale is "3"/],
  [{ classLabels: 1, rng: "dice" }, /rng "dice" is unknown; choose philox or torch/],
  [{ classLabels: 1, width: 64 }, /draws 28x28 pixels only, not 64x28/],
  [{ classLabels: 1, batchSize: 0 }, /batchSize is 0/],
  [null, /a request to mnist-paper must be an object/],
];

for (const [request, pattern] of WRONG) {
  test(`a request is refused before anything is computed: ${pattern.source}`, async () => {
    await refused(() => digits(request), pattern);
    assert.throws(() => digits.denoise(request), RequestError); // at once, not when the first step is asked for
  });
}

test("numbers that are no longer finite are said, and no picture is made of them", async () => {
  await refused(
    () => digits({ classLabels: 1, ...FAST, guidanceScale: 1e38 }),
    /row \d of 4 is no longer finite; guidanceScale 1e\+38 is too large/,
  );
});

test("prompts in lists, weights, long ones and sizes are drawn, each as by itself", withText, async () => {
  const prompt = ["a (red:1.3) cat", `a dog ${", very old".repeat(20)}`, "a (red:1.3) cat"];
  const settings = { ...SMALL(), negativePrompt: "grey", seed: 5 };
  const together = await words({ prompt, ...settings, numImagesPerPrompt: 2, batchSize: 4 });
  assert.equal(together.images.length, 6);
  const [image] = together.images;
  assert.deepEqual([image.width, image.height, image.channels], [settings.width, settings.height, 3]);
  assert.equal(together.images[5].recipe.prompt, prompt[2]);
  const alone = await words({ prompt: prompt[1], ...settings, seed: 7 });
  assert.deepEqual(pixels(alone.images)[0], pixels(together.images)[2]);
  const plain = await words({ prompt: "a red cat", ...settings });
  assert.notEqual(pixels(plain.images)[0], pixels(together.images)[0]);
});

test("10,000 words are read as far as can be, and the rest is said", withText, async () => {
  const { warnings } = await words({ ...SMALL(), prompt: "a ".repeat(10000), guidanceScale: 1, seed: 1 });
  const cut = warnings.filter((line) => line.startsWith("the prompt has 10000 tokens in "));
  assert.equal(cut.length, 1, warnings.join("\n"));
  assert.match(cut[0], /of which \d+ in 32 are read; cut off is "a a a .*…"$/);
});

const WRONG_WORDS = [
  [{}, /draws what a prompt says; give one/],
  [{ prompt: [] }, /there is no prompt to draw/],
  [{ prompt: 7 }, /a prompt must be a string, not a number/],
  [{ prompt: "a", classLabels: 1 }, /has no "classLabels"; there are prompt, negativePrompt/],
  [{ prompt: ["a", "b"], negativePrompt: ["c"] }, /2 prompts have 1 negative prompts; give one, or as many/],
  [{ prompt: "a", numImagesPerPrompt: 0 }, /numImagesPerPrompt is 0/],
  [{ prompt: "a", clipSkip: 99 }, /clipSkip is 99; it must be a whole number from 0 to /],
  [{ prompt: "a", width: 30.5 }, /width is 30\.5; it must be a whole number from /],
  [{ prompt: "a", height: 2 ** 15 }, /height is 32768; it must be a whole number from /],
  [{ prompt: "\udc00" }, /half a surrogate pair/],
];

for (const [request, pattern] of WRONG_WORDS) {
  test(`a request of text is refused: ${pattern.source}`, withText, () => refused(() => words(request), pattern));
}

test("a size that is no multiple is refused with the next one that is", withText, async () => {
  const { factor } = words.manifest.latents;
  await refused(
    () => words({ prompt: "a", width: 4 * factor + 1 }),
    new RegExp(`draws multiples of ${factor}: ${4 * factor}$`),
  );
});
