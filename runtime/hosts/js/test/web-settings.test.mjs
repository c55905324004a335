/**
 * Proves that a link to the page has all that a picture is made of, and that whatever a link or the form says wrongly is
 * said in a line and left out.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

import { describe } from "../web/description.mjs";
import { asRequest, checked, engineOf, fromFragment, toFragment } from "../web/settings.mjs";

const ddim = (steps) => ({ sampler: "ddim", num_inference_steps: steps, options: {} });
const karras = (steps) => ({ sampler: "dpmpp_2m", num_inference_steps: steps, options: { sigma_spacing: "karras" } });
const DEFAULTS = { sampler: "ddim", num_inference_steps: 10, guidance_scale: 3, width: 28, height: 28 };
const CLASSES = describe({
  name: "garments",
  conditioning: { kind: "class", names: ["T-shirt/top", "bag & belt", "7"] },
  defaults: DEFAULTS,
  plans: { "dpmpp_2m_karras-10": karras(10), "ddim-20": ddim(20), "ddim-10": ddim(10) },
});
const TEXT = describe({
  name: "world",
  conditioning: { kind: "text", known_words: ["red"] },
  defaults: { ...DEFAULTS, sampler: "dpmpp_2m_karras" },
  plans: { "dpmpp_2m_karras-10": karras(10), "dpmpp_2m_karras-4": karras(4) },
});

test("plans are told apart by sampler and steps, the default sampler's first", () => {
  assert.deepEqual(CLASSES.plans, [
    { name: "ddim-10", sampler: "ddim", inWords: "DDIM", steps: 10 },
    { name: "ddim-20", sampler: "ddim", inWords: "DDIM", steps: 20 },
    { name: "dpmpp_2m_karras-10", sampler: "dpmpp_2m_karras", inWords: "DPM++ 2M Karras", steps: 10 },
  ]);
  assert.equal(CLASSES.plan, "ddim-10");
  assert.deepEqual(
    TEXT.plans.map(({ steps }) => steps),
    [4, 10],
  );
});

const PROMPT = 'a "red" & [blue] #7 = 100 %\n+ é 猫 🙂';
for (const [description, settings] of [
  [CLASSES, { label: 1, plan: "dpmpp_2m_karras-10", guidance: -0.5, seed: 2n ** 64n - 1n, engine: "wasm" }],
  [CLASSES, { label: 2, plan: "ddim-20", guidance: 1e-7, seed: 0n, engine: "auto" }],
  [TEXT, { prompt: PROMPT, negative: "x=y&z", plan: "dpmpp_2m_karras-4", guidance: 7.5, seed: 7n }],
]) {
  test(`a link to ${description.name} with ${settings.plan} comes back as it was`, () => {
    const whole = { ...checked({}, description).settings, ...settings };
    const link = new URL(toFragment(whole, description), "https://example.org/page/");
    assert.equal(link.pathname, "/page/");
    assert.equal(link.search, "");
    assert.deepEqual(checked(fromFragment(link.hash), description), { settings: whole, problems: {} });
    assert.equal(fromFragment(link.hash).model, description.name);
  });
}

test("what is not asked for is the model's default, and a new seed", () => {
  const { settings, problems } = checked({ steps: "", seed: " ", guidance: "" }, CLASSES);
  assert.deepEqual(problems, {});
  const { seed, ...others } = settings;
  assert.deepEqual(others, { prompt: "", negative: "", label: 0, plan: "ddim-10", guidance: 3, engine: "auto" });
  assert.ok(seed >= 0n && seed < 2n ** 32n);
});

test("a class goes by its name, else by its number", () => {
  const label = (text) => checked({ class: text }, CLASSES).settings.label;
  assert.deepEqual(["T-shirt/top", "1", "7", "2"].map(label), [0, 1, 2, 2]);
});

for (const [field, text, line] of [
  ["steps", "0", "steps “0” is none of garments's: 10, 20"],
  ["steps", "10.0", "steps “10.0” is none of garments's: 10, 20"],
  ["steps", "ten", "steps “ten” is none of garments's: 10, 20"],
  ["seed", "abc", "seed “abc” must be a whole number from 0 to 18446744073709551615"],
  ["seed", "-1", "seed “-1” must be a whole number from 0 to 18446744073709551615"],
  ["seed", "18446744073709551616", "seed “18446744073709551616” must be a whole number from 0 to 18446744073709551615"],
  ["seed", "1e3", "seed “1e3” must be a whole number from 0 to 18446744073709551615"],
  ["guidance", "NaN", "guidance “NaN” must be a number, such as 3; 1 is off"],
  ["guidance", "1e999", "guidance “1e999” must be a number, such as 3; 1 is off"],
  ["guidance", "0x10", "guidance “0x10” must be a number, such as 3; 1 is off"],
  ["class", "3", "class “3” is none of garments's: T-shirt/top, bag & belt, 7"],
  ["class", "-1", "class “-1” is none of garments's: T-shirt/top, bag & belt, 7"],
  ["class", "toString", "class “toString” is none of garments's: T-shirt/top, bag & belt, 7"],
]) {
  test(`${field} ${text} is refused and left out`, () => {
    const { settings, problems } = checked({ [field]: text }, CLASSES);
    assert.deepEqual(problems, { [field]: line });
    const { seed, ...others } = settings;
    assert.ok(seed < 2n ** 32n);
    assert.deepEqual(others, { prompt: "", negative: "", label: 0, plan: "ddim-10", guidance: 3, engine: "auto" });
  });
}

test("another sampler's steps, another model's class and what is very long are refused in a line", () => {
  const { settings, problems } = checked({ sampler: "euler", steps: "20" }, CLASSES);
  assert.deepEqual(problems, { sampler: "sampler “euler” is none of garments's: ddim, dpmpp_2m_karras" });
  assert.equal(settings.plan, "ddim-20"); // as if no sampler were asked for
  assert.equal(
    checked({ class: "bag" }, TEXT).problems.class,
    "class “bag” says nothing to world, which takes a sentence",
  );
  assert.ok(checked({ seed: "9".repeat(10_000) }, TEXT).problems.seed.length < 200);
});

test("a sampler without steps has the model's number of steps, or says which it has", () => {
  assert.equal(checked({ sampler: "dpmpp_2m_karras" }, CLASSES).settings.plan, "dpmpp_2m_karras-10");
  assert.deepEqual(checked({ sampler: "euler" }, CLASSES).problems, {
    sampler: "sampler “euler” is none of garments's: ddim, dpmpp_2m_karras",
  });
  const plans = CLASSES.plans.map((plan) => ({ ...plan, steps: plan.steps + plan.sampler.length }));
  const few = { ...CLASSES, plans };
  assert.deepEqual(checked({ sampler: "dpmpp_2m_karras" }, few).problems, {
    sampler: "sampler “dpmpp_2m_karras” needs steps, one of 25",
  });
  for (const sampler of ["", " "]) {
    const { settings, problems } = checked({ sampler, steps: "20" }, CLASSES);
    assert.deepEqual([settings.plan, problems], ["ddim-20", {}]);
  }
});

test("an engine that there is not is said, and is what is best", () => {
  assert.deepEqual(
    ["wasm", "webgpu", "auto"].map((engine) => engineOf({ engine })),
    ["wasm", "webgpu", "auto"],
  );
  assert.deepEqual([{}, { engine: "foo" }, { engine: "" }].map(engineOf), ["auto", "auto", "auto"]);
  const { settings, problems } = checked({ engine: "foo" }, CLASSES);
  assert.equal(settings.engine, "auto");
  assert.deepEqual(problems, { engine: "engine “foo” is none of auto, webgpu, wasm" });
});

test("a request has what the pipeline is asked, and no more", () => {
  const text = checked({ prompt: "red", seed: "7" }, TEXT).settings;
  const same = { plan: "dpmpp_2m_karras-10", guidanceScale: 3, seed: 7n };
  assert.deepEqual(asRequest(text, TEXT), { prompt: "red", negativePrompt: "", ...same });
  const label = checked({ class: "7", seed: "7" }, CLASSES).settings;
  assert.deepEqual(asRequest(label, CLASSES), { classLabels: 2, ...same, plan: "ddim-10" });
});
