/**
 * The arithmetic of one row of a plan, as docs/bundle.md has it to the last rounding: in float64, rounded to float32
 * once (runtime/arithmetic.py). Samples of a batch are one Float32Array each.
 */

import { RequestError } from "./errors.mjs";

/** x_0 of a batch that begins at noise. */
export function firstSample(plan, noise) {
  return noise.map((z) => plan.initial_scale * z);
}

/** The weighted sum of a row: left to right; terms of weight zero do not count, and need not exist. */
export function combine(weights, terms) {
  const total = new Float64Array(terms[0].length);
  weights.forEach((weight, j) => {
    if (weight === 0) return;
    const term = terms[j];
    if (!term)
      throw new RequestError("the plan looks back further than its first row; it was not made by this program");
    for (let k = 0; k < total.length; k++) total[k] += weight * term[k];
  });
  return Float32Array.from(total);
}

/**
 * The output led away from `uncond` (Ho & Salimans 2022, eq. 6, with s = w + 1).
 *
 * With `rescale` phi > 0 it is mixed with itself at the standard deviation that `cond` has over all elements of an
 * image (Lin et al. 2024, section 3.4, eqs. 15 and 16).
 *
 * @param size elements of one image.
 */
export function guided(uncond, cond, scale, rescale, size) {
  const output = Float64Array.from(uncond, (u, k) => u + scale * (cond[k] - u));
  if (rescale) {
    for (let begin = 0; begin < output.length; begin += size) {
      const own = output.subarray(begin, begin + size);
      const ratio = deviation(Float64Array.from(cond.subarray(begin, begin + size))) / deviation(own);
      own.forEach((g, k) => (own[k] = rescale * (g * ratio) + (1 - rescale) * g));
    }
  }
  return Float32Array.from(output);
}

/** Standard deviation of all elements. */
function deviation(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}

/**
 * Clip the predicted original sample, and change the output so that it predicts the clipped one.
 *
 * @param x0Weights p and q of x_0 = p*x + q*o.
 * @param bound x_0 is kept within +- this.
 * @returns the output, changed only where something was clipped, and the clipped x_0.
 */
export function clipOriginal([p, q], sample, output, bound) {
  const clipped = new Float32Array(sample.length);
  const consistent = Float32Array.from(output);
  sample.forEach((x, k) => {
    const scaled = p * x;
    const original = scaled + q * output[k];
    const kept = Math.min(Math.max(original, -bound), bound);
    if (kept !== original) consistent[k] = (kept - scaled) / q;
    clipped[k] = kept;
  });
  return [consistent, clipped];
}
