/**
 * Proves that the command line draws, and that each bad input is one line and exit status 2, with nothing half-written.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { CLASSES, TEXT, withText } from "./bundles.mjs";

const CLI = fileURLToPath(new URL("../diffuse-cli.mjs", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "diffuse-"));
const DRAW = ["--model", CLASSES, "--label", "7", "--steps", "4", "--seed", "3", "--threads", "1"];

function run(...words) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [CLI, ...words], { cwd: folder, encoding: "utf8" });
  return { status, stdout, stderr };
}

test("a digit is drawn, and not over what is there", () => {
  const first = run(...DRAW, "-o", "seven.png");
  assert.deepEqual(first, {
    status: 0,
    stdout: "seven.png: mnist-paper, ddim 4 steps, guidance scale 3, seed 3 (philox)\n",
    stderr: "",
  });
  const bytes = readFileSync(join(folder, "seven.png"));
  const again = run(...DRAW, "-o", "seven.png");
  assert.equal(again.status, 2);
  assert.equal(again.stderr, "error: seven.png exists; choose another name or add --overwrite\n");
  assert.equal(run(...DRAW, "-o", "seven.png", "--overwrite").status, 0);
  assert.deepEqual(readFileSync(join(folder, "seven.png")), bytes);
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.includes("seven")),
    ["seven.png"],
  ); // nothing aside
});

test("a bundle is checked", () => {
  const { status, stdout, stderr } = run("check", CLASSES, "--threads", "1");
  assert.equal(stderr, "");
  assert.equal(status, 0);
  assert.match(stdout, /^pass {2}unet-fp32\.onnx: SHA-256\n/);
  assert.match(stdout, /mnist-paper: 20 of 20 pass\n$/);
});

writeFileSync(join(folder, "bad.json"), '{"sampler": ');
mkdirSync(join(folder, "empty"));
mkdirSync(join(folder, "folder.png"));
const OUT = ["-o", "never.png"];
const WRONG = [
  [[], /there is nothing to do; see --help/],
  [["a cat", ...OUT], /there is no model; give --model BUNDLE/],
  [["--model", CLASSES], /the picture has nowhere to go; give -o FILE\.png/],
  [["--model", CLASSES, "-o", "x.jpg"], /x\.jpg must end in \.png/],
  [["--model", CLASSES, "-o", "no/x.png"], /the folder no does not exist; make it first/],
  [["--model", CLASSES, "-o", "folder.png"], /folder\.png is a folder/],
  [["--model", "empty", ...OUT], /empty is not a bundle: it holds no manifest\.json/],
  [["--model", "unicorn", ...OUT], /there is no bundle "unicorn"/],
  [["--model", CLASSES, "--colour", "red", ...OUT], /colour/],
  [["--model", CLASSES, "one", "two", ...OUT], /one prompt is drawn, in quotes; there is also "two"/],
  [["--model", CLASSES, "a cat", ...OUT], /draws classes and takes no text; leave out a prompt/],
  [["--model", CLASSES, "--negative", "a cat", ...OUT], /leave out --negative/],
  [["--model", CLASSES, "--label", "ten", ...OUT], /label "ten" is none of 0 to 9/],
  [["--model", CLASSES, "--label", "10", ...OUT], /label "10" is none of 0 to 9/],
  [["--model", CLASSES, "--steps", "0", ...OUT], /numInferenceSteps is 0; it must be a whole number of at least 1/],
  [["--model", CLASSES, "--steps", "many", ...OUT], /--steps is "many"; it must be a whole number/],
  [["--model", CLASSES, "--steps", "7", ...OUT], /has no plan "ddim-7"; it has ddim-4/],
  [["--model", CLASSES, "--seed", "seven", ...OUT], /--seed is "seven"; it must be a whole number/],
  [
    ["--model", CLASSES, "--seed", "18446744073709551616", ...OUT],
    /seed is 18446744073709551616; give a whole number from 0/,
  ],
  [
    ["--model", CLASSES, "--seed", "123456789012345678901", ...OUT],
    /seed is 123456789012345678901; give a whole number from 0 to 2\^64 - 1/,
  ],
  [["--model", CLASSES, "--guidance-scale", "much", ...OUT], /--guidance-scale is "much"; it must be a number/],
  [["--model", CLASSES, "--size", "28", ...OUT], /size "28" must be WIDTHxHEIGHT/],
  [["--model", CLASSES, "--size", "64x64", ...OUT], /draws 28x28 pixels only, not 64x64/],
  [["--model", CLASSES, "--threads", "0", ...OUT], /threads is 0/],
  [["--model", CLASSES, "--plan", "none.json", ...OUT], /the plan none\.json cannot be read \(ENOENT\)/],
  [["--model", CLASSES, "--plan", "empty", ...OUT], /the plan empty is no file/],
  [["--model", "\x1b[31mred", ...OUT], /there is no bundle "\\u001b\[31mred"/],
  [["--model", CLASSES, "-o", "\x1b[31m/x.png"], /the folder \\x1b\[31m does not exist/],
  [["--model", CLASSES, "--plan", "bad.json", ...OUT], /bad\.json: the plan is not JSON/],
  [
    ["--model", CLASSES, "--plan", "bad.json", "--steps", "4", ...OUT],
    /--plan is whole; leave out --sampler and --steps/,
  ],
  [["check"], /give one bundle to check/],
  [["check", "empty"], /empty is not a bundle/],
];

for (const [words, pattern] of WRONG) {
  test(`one line and status 2: ${words.join(" ").replace(CLASSES, "mnist-paper")}`, () => {
    const { status, stdout, stderr } = run(...words);
    assert.match(stderr, /^error: [^\n]+\n$/);
    assert.match(stderr, pattern);
    assert.equal(status, 2);
    assert.equal(stdout, "");
    assert.ok(!readdirSync(folder).some((name) => name.includes("never")));
  });
}

test("a bundle of text takes a prompt and no label", withText, () => {
  assert.match(run("--model", TEXT, ...OUT).stderr, /draws what a prompt says; give one: "a red sneaker"/);
  assert.match(run("--model", TEXT, "a", "--label", "3", ...OUT).stderr, /leave out --label "3"/);
});
