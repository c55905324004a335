/**
 * What a picture is asked to be: read from a link or from the form, checked, and written into a link.
 *
 * A link has all of it behind its `#`, which browsers send to nobody: `#model=pocket&prompt=a+red+sneaker&steps=10&...`
 */

const MAX_SEED = 2n ** 64n - 1n;
const ENGINES = ["auto", "webgpu", "wasm"];

/** The engine that a link or the form names; the best there is where it names none, or none that there is. */
export function engineOf({ engine }) {
  return ENGINES.includes(engine) ? engine : "auto";
}

/**
 * What is asked for, as text: `{ model, prompt, negative, class, sampler, steps, guidance, seed, engine }`, of which a
 * link or a form may have some.
 */
export function fromFragment(fragment) {
  return Object.fromEntries(new URLSearchParams(fragment.replace(/^#/, "")));
}

/** A link's part behind the `#`, without what is the default anyway. */
export function toFragment(settings, description) {
  const { sampler, steps } = description.plans.find(({ name }) => name === settings.plan);
  const text = description.kind === "text";
  const parts = {
    model: description.name,
    prompt: text ? settings.prompt : null,
    negative: (text && settings.negative) || null,
    class: text ? null : description.names[settings.label],
    sampler: description.plans.every((plan) => plan.sampler === sampler) ? null : sampler,
    steps,
    guidance: settings.guidance,
    seed: settings.seed,
    engine: settings.engine === "auto" ? null : settings.engine,
  };
  return `#${new URLSearchParams(Object.entries(parts).filter(([, value]) => value !== null))}`;
}

/**
 * Settings with every default filled in, and a line for each that cannot be as it was asked for. What is empty is not
 * asked for.
 *
 * @param asked as `fromFragment` returns it.
 * @param description as `describe` returns it.
 * @returns `{ settings, problems }`: settings that can be drawn, and by the names above what is wrong with the others.
 */
export function checked(asked, description) {
  const problems = {};
  const settings = {
    prompt: asked.prompt ?? "",
    negative: asked.negative ?? "",
    label: 0,
    plan: description.plan,
    guidance: description.guidance,
    seed: newSeed(),
    engine: engineOf(asked),
  };
  for (const [field, check] of Object.entries(CHECKS)) {
    if (!asked[field]?.trim()) continue;
    const found = check(asked[field].trim(), description, asked);
    if (found.problem) problems[field] = found.problem;
    else Object.assign(settings, found);
  }
  return { settings, problems };
}

const CHECKS = {
  class(text, { kind, names, name }) {
    if (kind !== "class") return { problem: `class ${short(text)} says nothing to ${name}, which takes a sentence` };
    const label = names.includes(text) || !/^\d{1,9}$/.test(text) ? names.indexOf(text) : Number(text);
    if (label >= 0 && label < names.length) return { label };
    return { problem: `class ${short(text)} is none of ${name}'s: ${names.join(", ")}` };
  },

  sampler(text, { plans, plan: usual, name }, { steps }) {
    const own = plans.filter((plan) => plan.sampler === text);
    if (!own.length) {
      const known = [...new Set(plans.map(({ sampler }) => sampler))];
      return { problem: `sampler ${short(text)} is none of ${name}'s: ${known.join(", ")}` };
    }
    if (steps?.trim()) return {}; // which say the rest
    const found = own.find((plan) => plan.steps === plans.find((each) => each.name === usual).steps);
    return found ? { plan: found.name } : { problem: `sampler ${short(text)} needs steps, one of ${counts(own)}` };
  },

  steps(text, { plans, plan: usual, name }, { sampler = "" }) {
    const asked = plans.filter((plan) => plan.sampler === sampler.trim());
    const usualSampler = plans.find((plan) => plan.name === usual).sampler;
    const own = asked.length ? asked : plans.filter((plan) => plan.sampler === usualSampler);
    const found = own.find((plan) => String(plan.steps) === text);
    if (found) return { plan: found.name };
    return { problem: `steps ${short(text)} is none of ${name}'s: ${counts(own)}` };
  },

  guidance(text) {
    const guidance = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : NaN;
    if (Number.isFinite(guidance)) return { guidance };
    return { problem: `guidance ${short(text)} must be a number, such as 3; 1 is off` };
  },

  seed(text) {
    if (/^\d{1,20}$/.test(text) && BigInt(text) <= MAX_SEED) return { seed: BigInt(text) };
    return { problem: `seed ${short(text)} must be a whole number from 0 to ${MAX_SEED}` };
  },

  engine(text) {
    return ENGINES.includes(text) ? {} : { problem: `engine ${short(text)} is none of ${ENGINES.join(", ")}` };
  },
};

function counts(plans) {
  return plans.map(({ steps }) => steps).join(", ");
}

/** What `Pipeline.denoise` is asked. */
export function asRequest({ prompt, negative, label, plan, guidance, seed }, { kind }) {
  const condition = kind === "text" ? { prompt, negativePrompt: negative } : { classLabels: label };
  return { ...condition, plan, guidanceScale: guidance, seed };
}

/** What is drawn, in words: for headings, and for who does not see it. */
export function inWords({ prompt, label }, { kind, names, name }) {
  return kind === "text" ? prompt.trim() || "nothing in particular" : `${names[label]} (${name})`;
}

export function newSeed() {
  const [low] = crypto.getRandomValues(new Uint32Array(1));
  return BigInt(low); // 32 bits, as Python draws them
}

function short(text) {
  return `“${text.length > 40 ? `${text.slice(0, 40)}…` : text}”`;
}
