/**
 * The strict reader of manifests: docs/bundle.md in code, as runtime/manifest.py. What it does not know, it refuses.
 * The manifest itself stays as JSON has it.
 */

import { BundleError, RequestError, quoted } from "./errors.mjs";
import { Fields } from "./fields.mjs";
import { isFiniteNumber } from "./limits.mjs";
import { PREDICTION_TYPES, Plan } from "./plan.mjs";
import { checkGraphs } from "./signatures.mjs";

const FORMAT_VERSION = 1;
const FAMILIES = ["class-conditional-ddpm", "stable-diffusion-1"];
const DTYPES = ["float32", "float16", "int64", "int32"];
const PLAIN_NAME = /^[A-Za-z0-9_-][A-Za-z0-9._-]*$/; // of a bundle, or a file in it: no separator, no dot at the start
const COUNT = 2 ** 16; // of channels, pixels a side, layers, tokens

/** Check a manifest's JSON value against the format; returns its plans, checked, by name. */
export function readManifest(value, where) {
  const fields = new Fields(value, where);
  const version = fields.count("format_version", 0);
  if (version !== FORMAT_VERSION) {
    throw new BundleError(`${where} has format_version ${version}; this program reads ${FORMAT_VERSION}`);
  }
  const name = fields.take("name", "string");
  if (!PLAIN_NAME.test(name)) {
    const rule = "may hold letters, digits, '.', '_' and '-' only, and begin with no '.'";
    throw new BundleError(`${where}: name ${quoted(name)} ${rule}`); // hosts make addresses and folders of it
  }
  fields.oneOf("family", FAMILIES);
  fields.nested("provenance", readProvenance);
  fields.mapping("graphs", (role) => Object.keys(role.value).forEach((variant) => role.nested(variant, readGraph)));
  fields.nested("noise_schedule", readNoiseSchedule);
  fields.nested("pixels", readPixels, { optional: true });
  fields.nested("latents", readLatents, { optional: true });
  fields.objects("unet_input", readUnetInput);
  fields.nested("conditioning", readConditioning);
  fields.nested("defaults", readDefaults);
  const plans = readPlans(fields);
  fields.finish();
  checkConsistency(value, where);
  checkPlanNames(value.defaults, plans, where);
  checkGraphs(value, where);
  return plans;
}

function readProvenance(fields) {
  for (const key of ["source", "sha256", "licence"]) fields.take(key, "string");
  fields.take("training", "object", "null");
  fields.take("exporter", "object");
}

function readFile(fields) {
  const name = fields.take("file", "string");
  if (!PLAIN_NAME.test(name)) {
    throw new BundleError(`${fields.where}: file ${quoted(name)} must be a plain name inside the bundle's folder`);
  }
  const sha256 = fields.take("sha256", "string");
  if (!/^[0-9a-f]{64}$/.test(sha256)) {
    throw new BundleError(`${fields.where}: sha256 ${quoted(sha256)} must be 64 hexadecimal digits`);
  }
  fields.count("size");
}

function readGraph(fields) {
  readFile(fields);
  fields.objects("external_data", readFile);
  fields.objects("inputs", readTensor);
  fields.objects("outputs", readTensor);
  fields.strings("providers");
  fields.count("opset");
  fields.take("parity", "object");
  fields.mapping("initializers", (weight) => {
    weight.take("name", "string");
    weight.take("transposed", "boolean");
  });
}

function readTensor(fields) {
  const shape = fields.take("shape", "list");
  if (!shape.every((size) => typeof size === "string" || (Number.isSafeInteger(size) && size > 0))) {
    throw new BundleError(`${fields.where}: shape must hold positive numbers and names only`);
  }
  fields.take("name", "string");
  fields.oneOf("dtype", DTYPES);
}

function readNoiseSchedule(fields) {
  const count = fields.count("num_train_timesteps", 1, 10 ** 6);
  const numbers = fields.take("alphas_cumprod", "list");
  if (numbers.length !== count || !numbers.every((x) => isFiniteNumber(x) && x >= 0 && x <= 1)) {
    throw new BundleError(`${fields.where}: alphas_cumprod must be ${count} numbers from 0 to 1`);
  }
  if (numbers[0] === 1 || numbers.some((x, i) => i > 0 && x >= numbers[i - 1])) {
    throw new BundleError(`${fields.where}: alphas_cumprod must decrease, from below 1`);
  }
  fields.take("betas", "object");
  fields.oneOf("prediction_type", PREDICTION_TYPES);
  fields.number("final_alpha_cumprod", 0, 1);
  fields.oneOf("timestep_spacing", ["leading", "trailing", "linspace"]);
  fields.count("steps_offset", 0);
}

function readPixels(fields) {
  const channels = fields.count("channels");
  if (channels !== 1 && channels !== 3) {
    throw new BundleError(
      `${fields.where}: channels is ${channels}; pictures are grey, with 1, or red-green-blue, with 3`,
    );
  }
  fields.count("height", 1, COUNT);
  fields.count("width", 1, COUNT);
}

function readLatents(fields) {
  const channels = fields.count("channels");
  fields.count("factor");
  fields.number("scaling_factor", 1e-6, 1e6);
  if (!fields.has("preview")) return;
  const preview = fields.nested("preview", readPreview, { optional: true });
  if (preview !== null && preview !== channels) {
    throw new BundleError(`${fields.where}: preview has ${preview} rows of weights for ${channels} channels`);
  }
}

/** Returns the number of rows of weights. */
function readPreview(fields) {
  const weights = fields.take("weights", "list");
  const colour = (row) => Array.isArray(row) && row.length === 3 && row.every(isFiniteNumber);
  if (!weights.every(colour) || !colour(fields.take("biases", "list"))) {
    throw new BundleError(
      `${fields.where}: weights and biases must be three finite numbers each, for red, green and blue`,
    );
  }
  return weights.length;
}

function readUnetInput(fields) {
  fields.oneOf("name", ["sample", "mask", "masked_sample"]);
  fields.count("channels", 1, COUNT);
}

function readConditioning(fields) {
  const kind = fields.take("kind", "string");
  if (kind === "class") return readClassConditioning(fields);
  if (kind === "text") return readTextConditioning(fields);
  throw new BundleError(`${fields.where}: kind ${quoted(kind)} is not known to this version, which knows: class, text`);
}

function readClassConditioning(fields) {
  const count = fields.count("num_classes");
  const nullClass = fields.count("null_class");
  if (nullClass !== count) throw new BundleError(`${fields.where}: null_class is ${nullClass}; it must be num_classes`);
  const names = fields.strings("names");
  if (names.length !== count || new Set(names).size !== count) {
    throw new BundleError(`${fields.where}: names must be ${count} different strings`);
  }
}

function readTextConditioning(fields) {
  const vocabSize = fields.count("vocab_size", 1, 2 ** 31);
  const layers = fields.count("num_hidden_layers", 1, COUNT);
  const words = fields.take("known_words", "list", "null");
  if (words !== null && !(words.length && words.every((word) => typeof word === "string"))) {
    throw new BundleError(`${fields.where}: known_words must be null or a list of strings`);
  }
  fields.nested("tokenizer", readFile);
  fields.count("max_length", 2, COUNT);
  for (const key of ["bos_token_id", "eos_token_id", "pad_token_id"]) fields.count(key, 0, vocabSize - 1);
  fields.count("embedding_dim", 1, COUNT);
  fields.count("clip_skip", 0, layers);
}

function readDefaults(fields) {
  fields.take("sampler", "string");
  fields.count("num_inference_steps");
  fields.number("guidance_scale");
  fields.count("width");
  fields.count("height");
}

function readPlans(fields) {
  const plans = new Map();
  for (const [name, value] of Object.entries(fields.take("plans", "object"))) {
    try {
      plans.set(name, new Plan(value));
    } catch (error) {
      if (error instanceof RequestError) throw new BundleError(`${fields.where}: plans: ${error.message}`);
      throw error;
    }
  }
  return plans;
}

/** What parts that are right by themselves can still have wrong together. */
function checkConsistency({ family, pixels, latents, conditioning, unet_input: unetInput }, where) {
  if ((pixels === null) === (latents === null))
    throw new BundleError(`${where}: exactly one of pixels and latents must be null`);
  const isText = conditioning.kind === "text";
  if (isText !== (family === "stable-diffusion-1") || isText !== (latents !== null)) {
    throw new BundleError(
      `${where}: family ${family} does not go with this conditioning; ` +
        "stable-diffusion-1 has text and latents, class-conditional-ddpm has classes and pixels",
    );
  }
  const { channels } = pixels ?? latents;
  const own = unetInput.find(({ name }) => name === "sample")?.channels;
  if (own !== channels) {
    throw new BundleError(`${where}: unet_input has ${own ?? "no"} channels of sample where the model has ${channels}`);
  }
  for (const { name, channels: count } of unetInput) {
    const wanted = name === "mask" ? 1 : own;
    if (unetInput.filter((each) => each.name === name).length > 1 || count !== wanted) {
      throw new BundleError(`${where}: unet_input has ${name} of ${count} channels; once, and of ${wanted}`);
    }
  }
  if (pixels && unetInput.length > 1) {
    throw new BundleError(`${where}: unet_input has more channels than the ${pixels.channels} that pixels has`);
  }
}

/** A host without samplers finds its plan by name, so the names must say what the plans are. */
function checkPlanNames(defaults, plans, where) {
  const usual = `${defaults.sampler}-${defaults.num_inference_steps}`;
  if (!plans.has(usual)) {
    throw new BundleError(`${where}: plans lacks ${quoted(usual)}, which is the default sampler at its default steps`);
  }
  for (const [name, plan] of plans) {
    const steps = String(plan.num_inference_steps);
    if (!/^[\w.-]+-\d+$/.test(name) || !name.endsWith(`-${steps}`)) {
      throw new BundleError(`${where}: plans: ${quoted(name)} must be SAMPLER-STEPS, and it has ${steps} steps`);
    }
  }
}
