/** What made a picture, as its PNG says it: runtime/result.py, runtime/image.py and runtime/parameters.py. */

const METADATA_KEY = "diffusion-anywhere";
const PARAMETERS_KEY = "parameters"; // where the web interfaces look
const HASH_DIGITS = 10;
// What people call the samplers; runtime/samplers has the same table.
const KNOWN_AS = {
  ddpm: "DDPM",
  ddim: "DDIM",
  pndm: "PLMS",
  lms: "LMS",
  euler: "Euler",
  euler_ancestral: "Euler a",
  heun: "Heun",
  dpm2: "DPM2",
  dpm2_ancestral: "DPM2 a",
  dpmpp_2m: "DPM++ 2M",
  dpmpp_3m: "DPM++ 3M",
  dpmpp_2s: "DPM++ 2S",
  dpmpp_sde: "DPM++ SDE",
  dpmpp_2m_sde: "DPM++ 2M SDE",
  dpmpp_3m_sde: "DPM++ 3M SDE",
  unipc: "UniPC",
  deis: "DEIS",
  sa_solver: "SA-Solver",
  lcm: "LCM",
  tcd: "TCD",
};

/** A sampler as people call it; its own name, where they have none. */
export function knownAs(sampler) {
  return Object.hasOwn(KNOWN_AS, sampler) ? KNOWN_AS[sampler] : sampler;
}

export function pictureTexts(recipe) {
  const words = parameters(recipe);
  return { [METADATA_KEY]: recipeText(recipe), ...(words === null ? {} : { [PARAMETERS_KEY]: words }) };
}

export function recipeText(recipe) {
  return json(recipe).replace(/[\x7f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** A value as JSON, keys sorted and whole numbers whole, as Python's json writes it. */
function json(value) {
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value)) return `[${value.map(json).join(", ")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const keys = Object.keys(value)
    .filter((key) => value[key] !== undefined)
    .sort();
  return `{${keys.map((key) => `${JSON.stringify(key)}: ${json(value[key])}`).join(", ")}}`;
}

export function parameters(recipe) {
  if (recipe.prompt === undefined) return null;
  const { options } = recipe;
  const facts = {
    Steps: recipe.num_inference_steps,
    Sampler: knownAs(recipe.sampler),
    "Schedule type": options.sigma_spacing ? capitalized(String(options.sigma_spacing)) : undefined,
    "CFG scale": recipe.guidance_scale,
    Seed: recipe.seed,
    Size: `${recipe.width}x${recipe.height}`,
    "Model hash": recipe.bundle_sha256.slice(0, HASH_DIGITS),
    Model: recipe.bundle,
    "Clip skip": recipe.clip_skip ? recipe.clip_skip + 1 : undefined, // they count the last layer, too
  };
  const told = Object.entries(facts).filter(([, value]) => value !== undefined);
  const lines = [recipe.prompt];
  if (recipe.negative_prompt) lines.push(`Negative prompt: ${recipe.negative_prompt}`);
  lines.push(told.map(([name, value]) => `${name}: ${value}`).join(", "));
  return lines.join("\n");
}

export function capitalized(word) {
  return word[0].toUpperCase() + word.slice(1).toLowerCase();
}
