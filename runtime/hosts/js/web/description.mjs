/** What the page has to know of a model, out of its checked manifest. */

import { capitalized, knownAs } from "../recipe.mjs";

/**
 * @param manifest as docs/bundle.md has it, checked.
 * @returns `plans` are `{ name, sampler, inWords, steps }`, those of the default sampler first and by their steps.
 */
export function describe({ name, conditioning, defaults, plans }) {
  const usual = `${defaults.sampler}-${defaults.num_inference_steps}`;
  const from = Object.entries(plans).map(([plan, { sampler, num_inference_steps: steps, options }]) => ({
    name: plan,
    sampler: plan.slice(0, plan.lastIndexOf("-")),
    inWords: inWords(sampler, options),
    steps,
  }));
  const rank = ({ sampler }) => (sampler === defaults.sampler ? "" : sampler);
  from.sort((a, b) => rank(a).localeCompare(rank(b)) || a.steps - b.steps);
  return {
    name,
    kind: conditioning.kind,
    names: conditioning.kind === "class" ? conditioning.names : null,
    knownWords: conditioning.kind === "text" ? conditioning.known_words : null,
    guidance: defaults.guidance_scale,
    width: defaults.width,
    height: defaults.height,
    plan: usual,
    plans: from,
  };
}

/** A sampler as people call it, such as "DPM++ 2M Karras". */
function inWords(sampler, { sigma_spacing: spacing }) {
  return spacing ? `${knownAs(sampler)} ${capitalized(String(spacing))}` : knownAs(sampler);
}
