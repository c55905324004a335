/**
 * Proves that what is published holds what it takes and nothing else, that a program which has installed it compiles in
 * strict mode and draws, and that the compiler refuses what is wrong.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

import { CLASSES } from "./bundles.mjs";

const HERE = fileURLToPath(new URL("../", import.meta.url));
const COMPILER = join(HERE, "node_modules", "typescript", "lib", "tsc.js");
const PEERS = ["@huggingface/tokenizers", "onnxruntime-node", "onnxruntime-web"];
const STRICT = { strict: true, exactOptionalPropertyTypes: true, target: "es2022", types: [] };
const read = (name) => readFileSync(join(HERE, name), "utf8");
const { exports, bin, ...facts } = JSON.parse(read("package.json"));
let project;

before(() => {
  project = mkdtempSync(join(tmpdir(), "consumer-"));
  for (const name of published()) copyFileSync(join(HERE, name), made(`node_modules/diffusion-anywhere/${name}`));
  for (const name of PEERS) symlinkSync(join(HERE, "node_modules", name), made(`node_modules/${name}`), "junction");
  writeFileSync(made("package.json"), JSON.stringify({ private: true, type: "module" }));
  copyFileSync(join(HERE, "test", "consumer.mts"), made("consumer.mts"));
  writeFileSync(made("readme.mts"), /```js\n([^]*?)```/.exec(read("README.md"))[1]);
});

after(() => rmSync(project, { recursive: true, force: true }));

/** A path in the project of somebody else, in a folder that is there. */
function made(name) {
  const path = join(project, name);
  mkdirSync(dirname(path), { recursive: true });
  return path;
}

/** The files that npm would publish. */
function published() {
  const { status, stdout, stderr } = spawnSync("npm", ["pack", "--dry-run", "--json"], { cwd: HERE, encoding: "utf8" });
  assert.equal(status, 0, stderr);
  const [{ files }] = Object.values(JSON.parse(stdout)); // a list, or an object by name
  return files.map(({ path }) => path);
}

/** What the compiler says of the project. */
function compiled(compilerOptions) {
  writeFileSync(made("tsconfig.json"), JSON.stringify({ compilerOptions: { ...STRICT, ...compilerOptions } }));
  const { status, stdout, stderr } = spawnSync(process.execPath, [COMPILER, "-p", project], { encoding: "utf8" });
  return status === 0 ? "" : stdout + stderr;
}

test("published is what the exports and the command import, their declarations, and what is read by people", () => {
  const needed = new Set([...Object.values(exports).flatMap(Object.values), ...Object.values(bin)].map(plain));
  for (const name of needed) {
    for (const [, from] of read(name).matchAll(/\bfrom "\.\/([^"]+)"/g)) needed.add(from);
  }
  assert.deepEqual(published().sort(), [...needed, "LICENSE", "README.md", "package.json"].sort());
  for (const { types, default: module } of Object.values(exports)) assert.equal(types, module.replace(".mjs", ".d.ts"));
});

function plain(path) {
  return path.replace(/^\.\//, "");
}

test("package.json says what a registry and whoever installs it have to know", () => {
  const { name, type, license, engines, types, peerDependencies } = facts;
  assert.deepEqual(
    { name, type, license, engines, types },
    {
      name: "diffusion-anywhere",
      type: "module",
      license: "Apache-2.0",
      engines: { node: ">=20" },
      types: exports["."].types,
    },
  );
  assert.equal(facts.private, undefined);
  assert.equal(facts.dependencies, undefined); // engine and tokenizer are whoever's who draws
  assert.deepEqual(Object.keys(peerDependencies), PEERS);
  assert.match(read(bin.diffuse), /^#!\/usr\/bin\/env node\n/);
});

test("a program compiles as bundlers compile it, and all declarations with it", () => {
  assert.equal(compiled({ module: "esnext", moduleResolution: "bundler", noEmit: true }), "");
});

test("a program compiles as Node resolves it, and draws with nothing but what is published", async () => {
  // The tokenizer's own declarations import without suffixes, which Node does not.
  assert.equal(compiled({ module: "nodenext", skipLibCheck: true }), "");
  const { drawn } = await import(pathToFileURL(join(project, "consumer.mjs")));
  const { png, previews, rows, files } = await drawn(CLASSES, 3, 5n);
  assert.deepEqual(
    [...png.subarray(1, 4)],
    [..."PNG"].map((c) => c.charCodeAt(0)),
  );
  assert.deepEqual([previews, rows, files], [10, 10, ["unet-fp32.onnx"]]);
});
