/** Proves that the declared interface is the real one, and that what the browser shares asks for nothing of Node's. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import * as ort from "onnxruntime-node";

import { check } from "../check.mjs";
import { load } from "../diffuse.mjs";
import { folderFiles } from "../node-files.mjs";
import { TextToImage } from "../text-to-image.mjs";
import { VERSION } from "../version.mjs";
import { CLASSES, TEXT, withText } from "./bundles.mjs";

const HERE = new URL("../", import.meta.url);
const read = (name) => readFileSync(new URL(name, HERE), "utf8");
const NODES_OWN = ["node-files.mjs", "diffuse-cli.mjs"];

test("pictures carry this package's version", () => {
  const locked = JSON.parse(read("package-lock.json"));
  for (const { version } of [JSON.parse(read("package.json")), locked, locked.packages[""]]) assert.equal(version, VERSION);
});

for (const name of readdirSync(HERE).filter((each) => each.endsWith(".d.ts"))) {
  test(`${name} declares what there is`, async () => {
    const module = await import(new URL(name.replace(".d.ts", ".mjs"), HERE));
    const declared = [...read(name).matchAll(/^export (?:function|class) (\w+)/gm)].map(([, word]) => word);
    assert.ok(declared.length);
    assert.deepEqual(
      declared.filter((word) => typeof module[word] !== "function"),
      [],
    );
    if (name === "diffuse.d.ts") {
      const internal = ["makePipeline"]; // of check.mjs
      assert.deepEqual(
        Object.keys(module).filter((word) => !declared.includes(word)),
        internal,
      );
    }
  });
}

test("shared modules import each other and nothing else, and name nothing of Node's", () => {
  for (const name of readdirSync(HERE).filter((each) => each.endsWith(".mjs") && !NODES_OWN.includes(each))) {
    const source = read(name);
    const imported = [...source.matchAll(/(?:from|import)\s*\(?\s*"([^"]+)"/g)].map(([, from]) => from);
    assert.deepEqual(
      imported.filter((from) => !from.startsWith("./") || NODES_OWN.includes(from.slice(2))),
      [],
      name,
    );
    assert.doesNotMatch(source, /\b(?:process|Buffer|require|window|document|__dirname)\b\s*[.(]/, name);
  }
});

/** The keys that an interface of diffuse.d.ts declares, sorted. */
function declaredKeys(name) {
  const [, body] = new RegExp(`^export interface ${name}(?: extends \\w+)? \\{\n([^]*?)^\\}`, "m").exec(
    read("diffuse.d.ts"),
  );
  return [...body.matchAll(/^  (?:readonly )?(\w+)\??[:(]/gm)].map(([, key]) => key).sort();
}

/** The keys that the refusal of an unknown one names, sorted. */
async function takenKeys(ask) {
  const { message } = await ask({ nonsense: 1 }).then(assert.fail, (error) => error);
  return /has no "nonsense"; there are (.*)$/.exec(message)[1].split(", ").sort();
}

test("what can be asked for is what is declared", async () => {
  assert.deepEqual(await takenKeys((options) => load(folderFiles(CLASSES), ort, options)), declaredKeys("LoadOptions"));
  const replay = (options) => check(folderFiles(CLASSES), ort, options).next();
  assert.deepEqual([...(await takenKeys(replay)), "onProgress"].sort(), declaredKeys("LoadOptions"));
  const pipeline = await load(folderFiles(CLASSES), ort, { threads: 1 });
  const ofClasses = await takenKeys(pipeline);
  assert.deepEqual([...ofClasses, ...TextToImage.takes].sort(), declaredKeys("PictureRequest"));
  await pipeline.dispose();
});

test("a step and a result have what is declared, and nothing else", async () => {
  const pipeline = await load(folderFiles(CLASSES), ort, { threads: 1 });
  let step;
  for await (step of pipeline.denoise({ classLabels: 0, numInferenceSteps: 10 }));
  assert.deepEqual([...Object.keys(step), "preview", "result"].sort(), declaredKeys("Step"));
  const result = await step.result();
  assert.deepEqual(Object.keys(result).sort(), declaredKeys("Result"));
  const ofPictures = [...declaredKeys("Image"), ...declaredKeys("Picture")].sort();
  assert.deepEqual(Object.keys(result.images[0]).sort(), ofPictures);
  assert.deepEqual(Object.keys(result.sample).sort(), declaredKeys("FloatTensor"));
  assert.deepEqual(Object.keys(pipeline.manifest).sort(), declaredKeys("Manifest"));
  assert.deepEqual(
    Object.keys(pipeline.plan()).sort(),
    [...declaredKeys("PlanFields"), ...declaredKeys("Plan")].sort(),
  );
  await pipeline.dispose();
});

test("the README's program runs, by the package's own name", withText, () => {
  const program = /```js\n([^]*?)```/.exec(read("README.md"))[1];
  const here = program.replace("models_onnx/pocket", TEXT).replace("60_000", "1_000_000");
  assert.notEqual(here, program);
  const words = ["--input-type=module", "--eval", here];
  const { status, stdout, stderr } = spawnSync(process.execPath, words, { cwd: fileURLToPath(HERE), encoding: "utf8" });
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^1 of \d+ \d+\n/);
  assert.match(stdout, /Uint8Array\(\d+\) \[/);
});
