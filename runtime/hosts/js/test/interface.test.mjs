/** Proves that the declared interface is the real one, and that what the browser shares asks for nothing of Node's. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { VERSION } from "../version.mjs";
import { TEXT, withText } from "./bundles.mjs";

const HERE = new URL("../", import.meta.url);
const read = (name) => readFileSync(new URL(name, HERE), "utf8");
const NODES_OWN = ["node-files.mjs", "diffuse-cli.mjs"];

test("pictures carry this package's version", () => {
  assert.equal(VERSION, JSON.parse(read("package.json")).version);
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

test("the package has all that it exports, and the CLI is not run by whoever imports it", () => {
  const { exports, bin, files, license } = JSON.parse(read("package.json"));
  const there = readdirSync(HERE);
  for (const path of [...Object.values(exports).flatMap(Object.values), ...Object.values(bin)]) {
    assert.ok(there.includes(path.slice(2)), path);
  }
  assert.deepEqual(files, ["*.mjs", "*.d.ts"]);
  assert.equal(license, "Apache-2.0");
  assert.ok(there.includes("LICENSE") && there.includes("README.md"));
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
