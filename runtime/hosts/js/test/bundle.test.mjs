/**
 * Proves that nothing of a bundle is believed: manifests, hashes and sizes, where weights lie; each fault is one line.
 */

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import * as ort from "onnxruntime-node";

import { openBundle } from "../bundle.mjs";
import { BundleError, EngineError, RequestError, load } from "../diffuse.mjs";
import { checkExternalData } from "../external-data.mjs";
import { findBundle, folderFiles } from "../node-files.mjs";
import { Networks } from "../session.mjs";
import { CLASSES, TEXT, changed, withText } from "./bundles.mjs";

const UNET = "unet-fp32.onnx";

/** The rejection must be of a kind, and its message one line that a pattern fits. */
async function refused(promise, pattern, kind = BundleError) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof kind, error.stack);
    assert.match(error.message, pattern);
    assert.doesNotMatch(error.message, /\n/);
    return true;
  });
}

const MANIFESTS = [
  [(m) => (m.format_version = 2), /manifest\.json has format_version 2; this program reads 1$/],
  [(m) => delete m.format_version, /lacks the key "format_version"/],
  [(m) => (m.colour = "red"), /has unknown keys: "colour"/],
  [(m) => (m.name = "../evil"), /may hold letters, digits/],
  [(m) => (m.name = ".."), /name "\.\." may hold letters, digits, '\.', '_' and '-' only, and begin with no '\.'/],
  [(m) => (m.name = ".x"), /begin with no '\.'$/],
  [(m) => (m.family = "stable-diffusion-9"), /family is "stable-diffusion-9"; it must be one of/],
  [(m) => (m.family = "stable-diffusion-1"), /does not go with this conditioning/],
  [(m) => (m.graphs.unet.fp32.file = "../../etc/passwd"), /must be a plain name inside the bundle's folder/],
  [(m) => (m.graphs.unet.fp32.file = ".hidden"), /must be a plain name/],
  [(m) => (m.graphs.unet.fp32.sha256 = "ABC"), /must be 64 hexadecimal digits/],
  [(m) => (m.graphs.unet.fp32.size = -1), /size is -1; it must be a whole number from 1/],
  [(m) => (m.graphs.unet.fp32.size = "5"), /size must be number, not a string/],
  [(m) => (m.graphs.unet.fp32.more = 1), /graphs\.unet: fp32 has unknown keys: "more"/],
  [(m) => (m.graphs.unet.fp32.inputs[0].dtype = "float16"), /must have the inputs sample float32/],
  [(m) => (m.graphs.unet.fp32.inputs[0].shape[1] = 3), /must have the inputs sample float32 \(batch, 1, 28, 28\)/],
  [(m) => (m.graphs.dragon = {}), /unknown: "dragon"/],
  [(m) => (m.graphs.unet = {}), /missing here: unet/],
  [(m) => (m.graphs = JSON.parse('{"__proto__": {"fp32": 1}}')), /graphs\.__proto__: fp32 must be object/],
  [(m) => (m.noise_schedule.alphas_cumprod[3] = 1), /must decrease, from below 1/],
  [(m) => m.noise_schedule.alphas_cumprod.pop(), /must be 400 numbers from 0 to 1/],
  [(m) => (m.noise_schedule.alphas_cumprod[0] = null), /must be 400 numbers/],
  [(m) => (m.pixels.channels = 2), /pictures are grey, with 1, or red-green-blue, with 3/],
  [(m) => (m.pixels = null), /exactly one of pixels and latents must be null/],
  [(m) => (m.unet_input[0].channels = 4), /unet_input has 4 channels of sample where the model has 1/],
  [(m) => m.unet_input.push({ name: "mask", channels: 1 }), /unet_input has more channels/],
  [(m) => (m.conditioning.kind = "video"), /kind "video" is not known to this version, which knows: class, text/],
  [(m) => (m.conditioning.null_class = 3), /it must be num_classes/],
  [(m) => (m.conditioning.names[1] = "0"), /names must be 10 different strings/],
  [(m) => (m.defaults.sampler = "euler"), /plans lacks "euler-50", which is the default sampler at its default steps/],
  [(m) => (m.plans["ddim-11"] = m.plans["ddim-10"]), /"ddim-11" must be SAMPLER-STEPS, and it has 10 steps/],
  [(m) => delete m.plans["ddim-10"].weights, /plans: the plan lacks \[weights\]/],
  [
    (m) => (m.plans["ddim-10"].weights[0][1] = 0.5),
    /row 0 of the plan's weights uses samples .* from before its first row/,
  ],
  [(m) => (m.plans["ddim-10"].timesteps[0] = "x"), /timesteps must be finite numbers of shape \(10\)/],
  [(m) => (m.plans["ddim-10"].noise_scales[0] = 2), /squares .* must sum to one/],
  [() => new TextEncoder().encode('{"name": '), /manifest\.json is not JSON \(/],
  [() => new TextEncoder().encode("[1]"), /manifest\.json must be an object, not a list/],
  [() => Uint8Array.of(0x7b, 0xff, 0x7d), /manifest\.json is not JSON \(/],
  [() => new TextEncoder().encode("[".repeat(10 ** 5)), /manifest\.json is not JSON \(/],
];

for (const [manifest, pattern] of MANIFESTS) {
  test(`a manifest is refused: ${pattern.source}`, async () => {
    await refused(openBundle(changed(CLASSES, { manifest })), pattern);
  });
}

test("a manifest that is right is frozen, and its files come once each", async () => {
  const bundle = await openBundle(folderFiles(CLASSES));
  assert.throws(() => (bundle.manifest.plans["ddim-10"].weights[0][0] = 0), TypeError);
  assert.deepEqual(
    bundle.entries().map(({ file }) => file),
    [UNET],
  );
});

test("a graph of another hash or size is refused before the engine sees it", async () => {
  const bytes = new Uint8Array(readFileSync(join(CLASSES, UNET)));
  const other = bytes.slice();
  other[1000] ^= 1;
  const untouched = { ...ort, InferenceSession: { create: () => assert.fail("the engine was asked") } };
  await refused(load(changed(CLASSES, { [UNET]: other }), untouched), /does not have the SHA-256 of the manifest/);
  const shorter = changed(CLASSES, { [UNET]: bytes.slice(1) });
  await refused(load(shorter, untouched), /has 1698023 bytes where the manifest says 1698024; fetch it again/);
});

test("files that cannot be had are one line each", async () => {
  const folder = mkdtempSync(join(tmpdir(), "bundle-"));
  await refused(findBundle(folder), /is not a bundle: it holds no manifest\.json/);
  await refused(findBundle("no-such-bundle"), /there is no bundle "no-such-bundle"; /);
  await refused(openBundle(folderFiles(folder)), /manifest\.json is not there; the bundle needs it as a plain file/);
  symlinkSync(join(CLASSES, "manifest.json"), join(folder, "manifest.json"));
  await refused(
    openBundle(folderFiles(folder)),
    /manifest\.json is a symbolic link; the bundle needs it as a plain file/,
  );
  const failing = { manifest: () => Promise.reject(new Error("the line\nis dead")), read: assert.fail };
  await refused(openBundle(failing), /^manifest\.json cannot be read \(the line is dead\)$/);
  await refused(openBundle({ manifest: async () => "{}", read: assert.fail }), /was not read as a Uint8Array/);
  await refused(openBundle({ manifest: async () => new Uint8Array(2 ** 26 + 1) }), /a manifest has at most 67108864/);
});

test("a bundle whose path is asked for is hashed where it lies", async () => {
  const { manifest } = await openBundle(folderFiles(CLASSES));
  const entry = manifest.graphs.unet.fp32;
  assert.equal(await folderFiles(CLASSES).path(entry, { size: entry.size }), join(CLASSES, UNET));
  await refused(folderFiles(CLASSES).path({ ...entry, sha256: "0".repeat(64) }, { size: entry.size }), /SHA-256/);
});

test("a graph with other inputs than its manifest says is refused", async () => {
  const manifest = (m) => (m.graphs.unet.fp32.inputs[0].shape[0] = 1);
  await refused(load(changed(CLASSES, { manifest }), ort), /has inputs sample float32 .* where the manifest says/);
});

test("options of load that are wrong are one line each", async () => {
  const files = folderFiles(CLASSES);
  await refused(
    load(files, ort, { threads: 0 }),
    /threads is 0; it must be a whole number from 1 to 1024/,
    RequestError,
  );
  await refused(load(files, ort, { variant: "int2" }), /variant "int2" is unknown; mnist-paper has fp32/, RequestError);
  await refused(load(files, ort, { thread: 2 }), /load has no "thread"; there are executionProviders/, RequestError);
  await refused(load(files, ort, { executionProviders: ["abacus"] }), /abacus/, EngineError);
  await refused(load(files, ort, { executionProviders: "cpu" }), /is "cpu"; it must be a list/, RequestError);
  const manifest = (m) => (m.graphs.unet.fp32.providers = ["CUDAExecutionProvider"]);
  await refused(
    load(changed(CLASSES, { manifest }), ort),
    /is for CUDAExecutionProvider, not for CPUExecutionProvider/,
  );
});

test("a provider is given its own variant unless another is named, and none that it cannot run", async () => {
  const providers = {
    "fp16-cuda": ["CUDAExecutionProvider"],
    fp16: ["any"],
    fp32: ["any"],
    "fp32-cpu": ["CPUExecutionProvider"],
  };
  const withVariants = (names) =>
    openBundle(
      changed(CLASSES, {
        manifest: (m) => {
          const portable = m.graphs.unet.fp32;
          m.graphs.unet = Object.fromEntries(names.map((n) => [n, { ...portable, providers: providers[n] }]));
        },
      }),
    );
  const all = Object.keys(providers);
  for (const [names, executionProviders, variant, used] of [
    [all, undefined, undefined, "fp32-cpu"],
    [all, ["wasm"], undefined, "fp32-cpu"],
    [all, ["cuda"], undefined, "fp32"],
    [all, ["webgpu"], undefined, "fp32"],
    [all, ["cpu"], "fp32", "fp32"],
    [["fp16-cuda", "fp16"], ["webgpu"], undefined, "fp16"],
    [["fp16-cuda", "fp16"], ["cuda"], undefined, "fp16-cuda"],
  ]) {
    const networks = new Networks(await withVariants(names), ort, { executionProviders, variant });
    assert.equal(networks.variantOf("unet"), used, `${names} on ${executionProviders} as ${variant}`);
  }
  const named = new Networks(await withVariants(all), ort, { variant: "fp16-cuda" });
  assert.throws(() => named.graph("unet"), /is for CUDAExecutionProvider, not for CPUExecutionProvider/);
});

test("loading says how many bytes are there, and can be stopped", async () => {
  const told = [];
  const pipeline = await load(folderFiles(CLASSES), ort, { onProgress: (progress) => told.push(progress) });
  assert.deepEqual(told.at(-1), { stage: "ready", file: "", loaded: 1698024, total: 1698024 });
  assert.ok(told.some(({ stage, file }) => stage === "open" && file === UNET));
  await pipeline.dispose();
  const stop = new AbortController();
  const stopped = load(folderFiles(CLASSES), ort, {
    signal: stop.signal,
    onProgress: () => stop.abort(new Error("enough")),
  });
  await assert.rejects(stopped, /^Error: enough$/);
});

test("a bundle of text needs the tokenizers", withText, async () => {
  await refused(load(folderFiles(TEXT), ort), /takes text; give load the class Tokenizer/, RequestError);
});

const varint = (value) => (value < 128 ? [value] : [(value & 127) | 128, ...varint(value >> 7)]);

/** A protobuf field: a number as a varint, anything else as bytes. */
function field(number, value) {
  if (typeof value === "number") return [...varint(number << 3), value];
  const bytes = typeof value === "string" ? [...new TextEncoder().encode(value)] : value.flat(Infinity);
  return [...varint((number << 3) | 2), ...varint(bytes.length), ...bytes];
}

const entry = (key, value) => field(13, [field(1, key), field(2, value)]);
const initializer = (...fields) => Uint8Array.from(field(7, [field(5, [field(8, "w"), ...fields])]));
const inside = (...steps) => Uint8Array.from(steps.reduceRight((data, number) => field(number, [data]), field(8, "w")));

test("weights lie in files that the manifest names, and nowhere else", () => {
  const sizes = new Map([["weights.bin", 100]]);
  const passes = (...fields) => checkExternalData(initializer(...fields), "m.onnx", sizes);
  passes();
  passes(entry("location", "weights.bin"), entry("offset", "60"), entry("length", "40"), field(14, 1));
  const fails = (pattern, ...fields) =>
    assert.throws(
      () => passes(...fields),
      (e) => e instanceof BundleError && pattern.test(e.message),
    );
  fails(
    /bytes 60 to 101 of weights\.bin, which has 100/,
    entry("location", "weights.bin"),
    entry("offset", "60"),
    entry("length", "41"),
  );
  fails(/lies in "\.\.\/secret"; it may lie only in weights\.bin/, entry("location", "../secret"), field(14, 1));
  fails(/does not say in which/, field(14, 1));
  fails(/says "location" twice/, entry("location", "weights.bin"), entry("location", "other"));
  fails(/has "-1" for an offset/, entry("location", "weights.bin"), entry("offset", "-1"));
  fails(/not one key with one value/, field(13, [field(1, "location")]));
});

test("external data is found wherever a tensor may be, and a file that is none is refused", () => {
  const bad = [...entry("location", "x"), ...field(8, "w")];
  // An attribute of a node of the graph, a subgraph's initializer, a function's attribute, a sparse tensor's values.
  for (const way of [
    [7, 1, 5, 5],
    [7, 1, 5, 6, 5],
    [25, 7, 5, 10],
    [25, 11, 5],
    [20, 1, 5],
    [7, 15, 1],
    [7, 1, 5, 23, 2],
  ]) {
    const model = Uint8Array.from(way.reduceRight((data, number) => field(number, [data]), bad));
    assert.throws(
      () => checkExternalData(model, "m", new Map()),
      /lies in "x"; it may lie only in the graph's own file/,
    );
  }
  const wrong = (bytes, pattern) =>
    assert.throws(() => checkExternalData(Uint8Array.from(bytes), "m", new Map()), pattern);
  wrong([0x3a, 5, 0], /m is cut off, or no ONNX file: a field of 5 bytes goes beyond its end/);
  wrong([0x38, 0x80], /it ends inside a number/);
  wrong(new Array(20).fill(0x80), /a number has more than ten bytes/);
  wrong([0x3b], /field 7 has wire type 3/);
  wrong([0x38, 1], /has a number where ONNX has a message/);
  const deep = inside(7, ...new Array(60).fill([1, 5, 6]).flat());
  assert.throws(() => checkExternalData(deep, "m", new Map()), /nests more than 100 levels deep/);
});
