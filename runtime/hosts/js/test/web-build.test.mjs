/**
 * Proves that `npm run build` replaces nothing but what a build has made, and puts nothing of a bundle where a browser
 * would take it for a part of the page. That what it makes draws is proven by tests/test_web_page_loading.py.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { renameSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { CLASSES } from "./bundles.mjs";

const BUILD = fileURLToPath(new URL("../web/build.mjs", import.meta.url));
const UNET = "unet-fp32.onnx";
const folder = mkdtempSync(join(tmpdir(), "build-"));

/** Run it as npm does: elsewhere than where the command was given. */
function build(...words) {
  const env = { ...process.env, INIT_CWD: folder };
  const options = { cwd: "/", env, encoding: "utf8" };
  const { status, stdout, stderr } = spawnSync(process.execPath, [BUILD, ...words], options);
  return { status, stdout, stderr };
}

function refused(pattern, ...words) {
  const before = readdirSync(folder);
  const { status, stdout, stderr } = build(...words);
  assert.deepEqual([status, stdout], [2, ""]);
  assert.match(stderr, /^error: [^\n]+\n$/);
  assert.match(stderr, pattern);
  assert.deepEqual(readdirSync(folder), before); // nothing half-made
}

/** A copy of a bundle, in a folder of its own, with another manifest and its graph under another name. */
function copied(name, { file = UNET, change = () => {} } = {}) {
  const target = join(folder, "bundles", name);
  cpSync(CLASSES, target, { recursive: true });
  renameSync(join(target, UNET), join(target, file));
  const manifest = JSON.parse(readFileSync(join(target, "manifest.json"), "utf8").replaceAll(UNET, file));
  change(manifest);
  writeFileSync(join(target, "manifest.json"), JSON.stringify(manifest));
  return `bundles/${name}`; // from where the command is given
}

mkdirSync(join(folder, "bundles"));
const GOOD = copied("good");

test("a folder that no build has made is left as it is", () => {
  mkdirSync(join(folder, "own"));
  writeFileSync(join(folder, "own", "site.json"), "mine");
  for (const out of ["own", ".", join(folder, "own")]) {
    refused(/holds what no build has made, and would be replaced; give --out a new folder/, "--out", out, GOOD);
  }
  assert.equal(readFileSync(join(folder, "own", "site.json"), "utf8"), "mine");
  writeFileSync(join(folder, "file"), "mine");
  refused(/ENOTDIR/, "--out", "file", GOOD);
});

test("what a build has made is made anew, and what lies beside it stays", () => {
  mkdirSync(join(folder, "page.partial"));
  writeFileSync(join(folder, "page.partial", "mine"), "");
  mkdirSync(join(folder, "page")); // empty
  for (let round = 0; round < 2; round++) {
    const { status, stdout, stderr } = build("--out", "page", GOOD);
    assert.equal(stderr, "");
    assert.deepEqual([status, stdout], [0, `${join(folder, "page")}: the page with mnist-paper\n`]);
    const names = readdirSync(join(folder, "page"));
    assert.ok(!names.includes("old"));
    writeFileSync(join(folder, "page", "old"), "");
    assert.deepEqual(readdirSync(join(folder, "page.partial")), ["mine"]);
    assert.deepEqual(
      readdirSync(folder).filter((name) => name.startsWith("page")),
      ["page", "page.partial"],
    );
  }
  const { models } = JSON.parse(readFileSync(join(folder, "page", "models.json"), "utf8"));
  assert.deepEqual(
    models.map(({ name }) => name),
    ["mnist-paper"],
  );
  assert.deepEqual(
    readFileSync(join(folder, "page", "models", "mnist-paper", UNET)),
    readFileSync(join(CLASSES, UNET)),
  );
});

for (const file of ["diffuse.mjs", "evil.html", "evil.svg", "evil.js", "evil.HTML", "evil.php", "evil"]) {
  test(`a bundle's ${file} is not served`, () => {
    refused(/may not be served; a bundle's files end in \.onnx /, "--out", "never", copied(`with-${file}`, { file }));
  });
}

test("a bundle whose name leads elsewhere is refused", () => {
  for (const name of ["..", ".x", "a/b"]) {
    const change = (manifest) => (manifest.name = name);
    refused(/may hold letters, digits/, "--out", "never", copied(`named-${name.replace("/", "-")}`, { change }));
  }
});

test("two bundles of one name are refused", () => {
  refused(/two bundles are called mnist-paper; a page has one of each name/, "--out", "never", GOOD, copied("again"));
});

test("a conformance file that is a link is refused", () => {
  const bundle = copied("linked");
  const path = join(folder, bundle, "conformance.safetensors");
  renameSync(path, join(folder, "elsewhere"));
  symlinkSync(join(folder, "elsewhere"), path);
  refused(/conformance\.safetensors is a link or no file; put the file itself there/, "--out", "never", bundle);
});

test("a bundle is found by its name in ./models_onnx, where the command was given", () => {
  refused(/there is no bundle "nobody"/, "--out", "never", "nobody");
  mkdirSync(join(folder, "models_onnx"));
  cpSync(CLASSES, join(folder, "models_onnx", "here"), { recursive: true });
  const { status, stderr } = build("--out", "named", "here");
  assert.deepEqual([status, stderr], [0, ""]);
});
