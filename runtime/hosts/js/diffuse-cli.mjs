#!/usr/bin/env node
/**
 * Draw pictures, or check a bundle, on the command line:
 *
 *     node diffuse-cli.mjs --model pocket "a red sneaker on a white background" -o sneaker.png
 *     node diffuse-cli.mjs --model mnist-paper --label 7 -o seven.png
 *     node diffuse-cli.mjs check BUNDLE
 *
 * Every error that a caller can mend is one line on standard error and exit status 2.
 */

import { readFile, stat } from "node:fs/promises";
import { extname } from "node:path";
import { parseArgs } from "node:util";

import { check } from "./check.mjs";
import { load, readPlan } from "./diffuse.mjs";
import { DiffusionError, EngineError, RequestError, oneLine, printable } from "./errors.mjs";
import { shown } from "./limits.mjs";
import { checkWritable, findBundle, folderFiles, writeWhole } from "./node-files.mjs";
import { MAX_PLAN_BYTES } from "./plan.mjs";
import { encodePng } from "./png.mjs";
import { pictureTexts } from "./recipe.mjs";

const USAGE = `usage: node diffuse-cli.mjs --model BUNDLE [PROMPT] [options] -o FILE.png
       node diffuse-cli.mjs check BUNDLE [--threads N]

  --model BUNDLE          a bundle's folder, or its name in $DIFFUSION_ANYWHERE_MODELS or ./models_onnx
  --label LABEL           what a model of classes draws: a number or a name
  --negative PROMPT       what a model of text leads away from
  --seed N                0 to 2^64 - 1; without it one is drawn and printed
  --sampler NAME          which of the bundle's samplers (default: the model's)
  --steps N               steps of the sampler, of those that the bundle has plans for (default: the model's)
  --plan FILE             a plan of: python -m runtime plan --json -o FILE
  --guidance-scale S      1 is off (default: the model's)
  --size WIDTHxHEIGHT     in pixels (default: the model's)
  --clip-skip N           last layers of the text encoder to leave out
  --rng NAME              philox (the default) or torch
  --variant NAME          which graphs to use where there are several, such as fp16
  --threads N             threads inside an operator (default: one for each core)
  -o, --output FILE.png   where the picture goes
  --overwrite             replace a file that exists`;
const TEXT = { type: "string" };
const OPTIONS = {
  ...{ model: TEXT, label: TEXT, negative: TEXT, seed: TEXT, sampler: TEXT, steps: TEXT, plan: TEXT, size: TEXT },
  ...{ "guidance-scale": TEXT, "clip-skip": TEXT, rng: TEXT, variant: TEXT, threads: TEXT },
  output: { type: "string", short: "o" },
  overwrite: { type: "boolean" },
  help: { type: "boolean", short: "h" },
};
const BAR_WIDTH = 30;

/** The words of a command line: `{ values, positionals }`. */
function parsed(words, options) {
  try {
    return parseArgs({ args: words, options, allowPositionals: true });
  } catch (error) {
    throw new RequestError(`${oneLine(error)}; see --help`);
  }
}

/** A whole number, of any size, as a flag has it; undefined where the flag is not given. */
function whole(values, flag, read = Number) {
  const text = values[flag];
  if (text === undefined) return undefined;
  if (!/^[0-9]+$/.test(text)) throw new RequestError(`--${flag} is ${shown(text)}; it must be a whole number`);
  return read(text);
}

function decimal(values, flag) {
  const text = values[flag];
  if (text === undefined) return undefined;
  if (!/^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?$/i.test(text)) {
    throw new RequestError(`--${flag} is ${shown(text)}; it must be a number`);
  }
  return Number(text);
}

function sizeOf({ size }) {
  if (size === undefined) return {};
  const found = /^([0-9]{1,9})x([0-9]{1,9})$/.exec(size);
  if (!found) throw new RequestError(`size ${shown(size)} must be WIDTHxHEIGHT in pixels, such as 512x512`);
  return { width: Number(found[1]), height: Number(found[2]) };
}

async function planOf({ plan: path, sampler, steps }) {
  if (path === undefined) return undefined;
  if (sampler !== undefined || steps !== undefined)
    throw new RequestError("--plan is whole; leave out --sampler and --steps");
  let bytes;
  try {
    const status = await stat(path);
    if (!status.isFile()) throw new RequestError(`the plan ${path} is no file`); // a device may have no end
    const { size } = status;
    if (size > MAX_PLAN_BYTES)
      throw new RequestError(`${path} has ${size} bytes; a plan has at most ${MAX_PLAN_BYTES}`);
    bytes = await readFile(path);
  } catch (error) {
    if (error instanceof DiffusionError) throw error;
    throw new RequestError(`the plan ${path} cannot be read (${error.code})`);
  }
  try {
    return await readPlan(bytes);
  } catch (error) {
    if (error instanceof RequestError) throw new RequestError(`${path}: ${error.message}`);
    throw error;
  }
}

/** A label by number or by name. */
function labelOf(text, { names, num_classes: count }) {
  if (names.includes(text)) return names.indexOf(text);
  if (/^[0-9]{1,9}$/.test(text) && Number(text) < count) return Number(text);
  const words = names.some((name, i) => name !== String(i)) ? ` (${names.join(", ")})` : "";
  throw new RequestError(`label ${shown(text)} is none of 0 to ${count - 1}${words}`);
}

/** What to draw, by what the model is told. */
function condition({ label, negative, "clip-skip": clipSkip }, prompt, { name, conditioning }) {
  if (conditioning.kind === "text") {
    if (label !== undefined)
      throw new RequestError(
        `${name} draws what a prompt says; leave out --label ${shown(label)}, or choose a --model`,
      );
    if (prompt === undefined) throw new RequestError(`${name} draws what a prompt says; give one: "a red sneaker"`);
    return { prompt, negativePrompt: negative };
  }
  const words = { "a prompt": prompt, "--negative": negative, "--clip-skip": clipSkip };
  const given = Object.keys(words).find((key) => words[key] !== undefined);
  if (given)
    throw new RequestError(`${name} draws classes and takes no text; leave out ${given}, or choose another --model`);
  return { classLabels: labelOf(label ?? "0", conditioning) };
}

/**
 * ONNX Runtime for Node and the tokenizers. Since 1.29 the former reports its use, and decides so when it is loaded.
 */
async function libraries() {
  process.env.ORT_DISABLE_TELEMETRY ??= "1";
  try {
    const [ort, { Tokenizer }] = await Promise.all([import("onnxruntime-node"), import("@huggingface/tokenizers")]);
    return { ort, Tokenizer };
  } catch (error) {
    const hint = "run: npm install --ignore-scripts onnxruntime-node @huggingface/tokenizers";
    throw new EngineError(`ONNX Runtime for Node or its tokenizers cannot be loaded (${oneLine(error)}); ${hint}`);
  }
}

function progressBar(row, rows) {
  if (!process.stderr.isTTY) return;
  const filled = Math.floor((BAR_WIDTH * row) / rows);
  const bar = "█".repeat(filled) + "·".repeat(BAR_WIDTH - filled);
  process.stderr.write(`\r${bar} ${row}/${rows}${row === rows ? "\n" : " "}`);
}

/** Draw, and say in one line what was used and where it went. */
async function draw(words) {
  const { values, positionals } = parsed(words, OPTIONS);
  if (values.help) return say(USAGE);
  const [prompt, ...more] = positionals;
  if (more.length) throw new RequestError(`one prompt is drawn, in quotes; there is also ${shown(more[0])}`);
  if (values.model === undefined) throw new RequestError("there is no model; give --model BUNDLE, see --help");
  if (values.output === undefined) throw new RequestError("the picture has nowhere to go; give -o FILE.png");
  const suffix = extname(values.output).toLowerCase();
  if (suffix !== ".png") throw new RequestError(`${values.output} must end in .png, which is all that is written here`);
  const settings = {
    ...sizeOf(values),
    sampler: values.sampler,
    numInferenceSteps: whole(values, "steps"),
    plan: await planOf(values),
    guidanceScale: decimal(values, "guidance-scale"),
    seed: whole(values, "seed", BigInt),
    rng: values.rng,
  };
  const threads = whole(values, "threads");
  const clipSkip = whole(values, "clip-skip");
  await checkWritable(values.output, values.overwrite);
  const files = folderFiles(await findBundle(values.model));
  const { ort, Tokenizer } = await libraries();
  const pipeline = await load(files, ort, { tokenizer: Tokenizer, threads, variant: values.variant });
  const what = condition(values, prompt, pipeline.manifest);
  if (clipSkip !== undefined) what.clipSkip = clipSkip;
  const { images, recipe, warnings } = await pipeline({ ...what, ...settings, onProgress: progressBar });
  for (const warning of warnings) process.stderr.write(`warning: ${warning}\n`);
  const [image] = images;
  await writeWhole(values.output, await encodePng(image, pictureTexts(image.recipe)));
  const how = `${recipe.sampler} ${recipe.num_inference_steps} steps, guidance scale ${recipe.guidance_scale}`;
  return say(`${values.output}: ${recipe.bundle}, ${how}, seed ${image.seed} (${recipe.rng})`);
}

/** Verify every hash, replay every case, and print one line for each. */
async function checkBundle(words) {
  const { values, positionals } = parsed(words, { threads: TEXT, help: OPTIONS.help });
  if (values.help) return say(USAGE);
  if (positionals.length !== 1) throw new RequestError("give one bundle to check: its folder or its name");
  const threads = whole(values, "threads");
  const folder = await findBundle(positionals[0]);
  const { ort, Tokenizer } = await libraries();
  let [passed, total] = [0, 0];
  for await (const outcome of check(folderFiles(folder), ort, { tokenizer: Tokenizer, threads })) {
    const { case: name, difference, tolerance } = outcome;
    const found = `: largest difference ${short(difference)}, allowed ${short(tolerance)}`;
    say(`${outcome.passed ? "pass" : "FAIL"}  ${name}${difference || tolerance ? found : ""}`);
    passed += outcome.passed;
    total += 1;
  }
  say(`${folder}: ${passed} of ${total} pass`);
  return passed === total ? 0 : 1;
}

function short(number) {
  return Number(number.toPrecision(3));
}

function say(lines) {
  process.stdout.write(`${lines.split("\n").map(printable).join("\n")}\n`);
  return 0;
}

async function main([command, ...rest]) {
  process.stdout.on("error", (error) => process.exit(error.code === "EPIPE" ? 0 : 1)); // head has read enough
  try {
    if (command === undefined) throw new RequestError("there is nothing to do; see --help");
    return await (command === "check" ? checkBundle(rest) : draw(command === "draw" ? rest : [command, ...rest]));
  } catch (error) {
    if (error instanceof DiffusionError) process.stderr.write(`error: ${error.message}\n`);
    else if (error instanceof RangeError && /allocation/i.test(error.message)) {
      process.stderr.write("error: there is not enough memory for this; ask for a smaller picture\n");
    } else throw error;
    return 2;
  }
}

process.exitCode = await main(process.argv.slice(2));
