/**
 * Replay a bundle's conformance file, so that this machine proves itself: runtime/check.py.
 *
 * The file holds inputs, expected outputs and tolerances for every graph, for the noise, for plans and for whole
 * pictures. Every host, in whatever language, has this command and reads the same file. This one compiles no plans: it
 * holds those of the manifest, which it draws by, against the expected numbers.
 */

import { openBundle } from "./bundle.mjs";
import { readConformance } from "./conformance.mjs";
import { makePipeline } from "./diffuse.mjs";
import { BundleError, DiffusionError, oneLine, quoted } from "./errors.mjs";
import { checkKeys } from "./limits.mjs";
import { GENERATORS, mersenneWords, noiseGenerator, philoxWords } from "./noise.mjs";
import { PLAN_TENSORS } from "./plan.mjs";
import { shortened } from "./prompt-syntax.mjs";
import { PromptTokenizer } from "./prompt.mjs";
import { Networks } from "./session.mjs";
import { product, tensor } from "./tensor.mjs";

const MAX_DRAW = 1000; // of a case of noise
const MAX_NUMBERS = 2 ** 26; // of all its draws together; a conformance file has no room for more
const OPTIONS = ["executionProviders", "threads", "variant", "tokenizer", "signal"];
const KINDS = { graph, bits, noise, plan, tokens, picture };

export async function* check(files, ort, options = {}) {
  checkKeys(options, OPTIONS, "check");
  const { tokenizer, signal, ...where } = options;
  const bundle = await openBundle(files, { signal });
  const networks = new Networks(bundle, ort, where);
  const here = { bundle, networks, tokenizer, signal };
  for (const entry of bundle.entries()) {
    await bundle.verify(entry, { signal });
    yield outcome(`${entry.file}: SHA-256`, 0, 0);
  }
  try {
    for (const each of await readConformance(bundle, { signal })) {
      signal?.throwIfAborted();
      yield* await replayed(each, here);
    }
  } finally {
    await networks.release();
  }
}

function outcome(name, difference, tolerance) {
  return { case: name, difference, tolerance, passed: difference <= tolerance };
}

/** What a case says, and what is malformed in it. */
async function replayed(each, here) {
  const kind = each.oneOf("kind", Object.keys(KINDS));
  let outcomes;
  try {
    outcomes = await KINDS[kind](each, here);
  } catch (error) {
    const malformed = error instanceof TypeError || error instanceof RangeError || error instanceof SyntaxError;
    if (error instanceof DiffusionError || !malformed) throw error;
    throw new BundleError(`${each.where} is malformed (${oneLine(error)})`, { cause: error });
  }
  each.finish();
  return outcomes;
}

/** max |mine - expected|; infinite where shapes differ or a value is not a number. */
export function largestDifference(mine, expected) {
  const same = mine.dims.length === expected.dims.length && mine.dims.every((size, i) => size === expected.dims[i]);
  if (!same) return Infinity;
  let largest = 0;
  for (let i = 0; i < expected.data.length; i++) {
    const difference = Math.abs(Number(mine.data[i]) - Number(expected.data[i]));
    if (Number.isNaN(difference)) return Infinity;
    largest = Math.max(largest, difference);
  }
  return largest;
}

async function graph(each, { bundle, networks, signal }) {
  const [role, variant] = [each.take("graph", "string"), each.take("variant", "string")];
  const described = bundle.graph(role, variant);
  const names = (specs) => specs.map(({ name }) => name);
  const inputs = Object.fromEntries(each.tensorsByName("inputs", names(described.inputs)));
  const expected = each.tensorsByName("outputs", names(described.outputs));
  const tolerance = each.tolerance();
  if (!networks.runsOn(described)) return [];
  const session = await networks.open(described, { signal });
  try {
    const outputs = await session.run(inputs);
    return expected.map(([name, value]) =>
      outcome(`graph ${role}/${variant} ${name}`, largestDifference(outputs[name], value), tolerance),
    );
  } finally {
    await session.release();
  }
}

function bits(each) {
  const [generator, seed] = [each.oneOf("generator", Object.keys(GENERATORS)), each.seed()];
  const isPhilox = generator === "philox";
  const expected = each.tensor("tensor", isPhilox ? 2 : 1);
  const draw = each.count("draw", 0, isPhilox ? 2 ** 32 - 1 : 0);
  const [count] = expected.dims;
  const words = isPhilox
    ? tensor(philoxWords(seed, draw, count), [count, 2])
    : tensor(mersenneWords(seed, count), [count]);
  return [outcome(`bits ${generator} seed ${seed}`, largestDifference(words, expected), 0)];
}

function noise(each) {
  const [rng, seed] = [each.oneOf("generator", Object.keys(GENERATORS)), each.seed()];
  const expected = each.tensor("tensor");
  const size = product(expected.dims);
  // Those before it are drawn too, and a stranger's file is not to keep this machine busy for ever.
  const draw = each.count("draw", 0, Math.min(MAX_DRAW, Math.floor(MAX_NUMBERS / Math.max(size, 1))));
  const generator = noiseGenerator(rng, seed);
  let drawn;
  for (let i = 0; i <= draw; i++) drawn = generator.draw(size);
  const difference = largestDifference(tensor(drawn, expected.dims), expected);
  return [outcome(`noise ${rng} seed ${seed} draw ${draw} of ${size}`, difference, each.tolerance())];
}

function plan(each, { bundle }) {
  const name = each.oneOf("plan", [...bundle.plans.keys()]);
  const [tolerance, shipped] = [each.tolerance(), bundle.plans.get(name)];
  return each.tensorsByName("tensors", PLAN_TENSORS).map(([key, expected]) => {
    const dims = Array.isArray(shipped[key][0]) ? [shipped[key].length, shipped[key][0].length] : [shipped[key].length];
    return outcome(`plan ${name} ${key}`, largestDifference(tensor(shipped[key].flat(), dims), expected), tolerance);
  });
}

async function tokens(each, { bundle, tokenizer, signal }) {
  if (bundle.manifest.conditioning.kind !== "text") {
    throw new BundleError(`${each.where} has tokens, but ${bundle.manifest.name} takes no text`);
  }
  const [prompt, expected] = [each.take("prompt", "string"), each.tensor("tensor")];
  const ids = (await PromptTokenizer.open(bundle, tokenizer, { signal })).ids(prompt);
  return [outcome(`tokens ${quoted(shortened(prompt))}`, largestDifference(tensor(ids, [ids.length]), expected), 0)];
}

async function picture(each, { bundle, networks, tokenizer, signal }) {
  const pipeline = await makePipeline(bundle, networks, tokenizer, { signal });
  const isText = bundle.manifest.conditioning.kind === "text";
  const condition = isText
    ? {
        prompt: each.take("prompt", "string"),
        negativePrompt: each.take("negative_prompt", "string"),
        width: each.count("width"),
        height: each.count("height"),
      }
    : { classLabels: each.take("class_labels", "list") };
  const [name, seed] = [each.oneOf("plan", [...bundle.plans.keys()]), each.seed()];
  const [sample, image, tolerance] = [each.tensor("sample"), each.tensor("image"), each.tolerance()];
  const guidanceScale = each.number("guidance_scale");
  const rng = each.oneOf("generator", Object.keys(GENERATORS));
  const result = await pipeline.draw({ ...condition, plan: name, guidanceScale, seed, rng, signal });
  const [{ width, height, channels }] = result.images;
  const pixels = result.images.flatMap(({ data }) => [...data]);
  const images = tensor(pixels, [result.images.length, height, width, channels]);
  return [
    outcome(`picture ${name} seed ${seed} sample`, largestDifference(result.sample, sample), tolerance),
    outcome(`picture ${name} seed ${seed} image`, largestDifference(images, image), 1),
  ];
}
