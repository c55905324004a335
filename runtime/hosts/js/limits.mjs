/** Ranges that the arguments of a request must keep: runtime/limits.py. */

import { RequestError, kindOf, quoted } from "./errors.mjs";

const MOST = 2 ** 31;
const MAX_IMAGES = 1_000_000; // of a request, which are held in memory until it is finished

/** A value as a message shows it: short, and whatever it is. */
export function shown(value) {
  if (typeof value === "object" && value !== null) return kindOf(value);
  const text = typeof value === "string" ? quoted(value) : String(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}

export function isFiniteNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** Refuse what is no whole number of a range. */
export function checkWhole(name, value, least, most = MOST) {
  if (!Number.isSafeInteger(value) || value < least || value > most) {
    const limits = most === MOST ? `of at least ${least}` : `from ${least} to ${most}`;
    throw new RequestError(`${name} is ${shown(value)}; it must be a whole number ${limits}`);
  }
  return value;
}

/** Refuse more images than a request may have. */
export function checkCount(count) {
  checkWhole("the number of images", count, 1, MAX_IMAGES);
}

/** The seed of image k of a request, (seed + k) mod 2^64, as a BigInt. */
export function imageSeed(seed, k = 0) {
  const whole = typeof seed === "bigint" || Number.isSafeInteger(seed);
  if (!whole || BigInt(seed) < 0n || BigInt(seed) >= 2n ** 64n) {
    const hint = typeof seed === "number" && seed > Number.MAX_SAFE_INTEGER ? " (above 2^53 - 1 as a BigInt)" : "";
    throw new RequestError(`seed is ${shown(seed)}; give a whole number from 0 to 2^64 - 1${hint}`);
  }
  return (BigInt(seed) + BigInt(k)) % 2n ** 64n;
}

/** Refuse arguments that nobody reads. */
export function checkKeys(value, known, what) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new RequestError(`${what} must be an object with some of ${known.join(", ")}`);
  }
  const unknown = Object.keys(value).filter((key) => !known.includes(key));
  if (unknown.length) throw new RequestError(`${what} has no ${shown(unknown[0])}; there are ${known.join(", ")}`);
}
