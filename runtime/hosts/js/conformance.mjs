/** A bundle's conformance file (docs/bundle.md), read as strictly as its manifest: runtime/conformance.py. */

import { CONFORMANCE, asked } from "./bundle.mjs";
import { BundleError, oneLine, quoted } from "./errors.mjs";
import { Fields } from "./fields.mjs";
import { readSafetensors } from "./safetensors.mjs";

const MAX_CONFORMANCE_BYTES = 256 * 2 ** 20;

/** One case, read key by key; some of its values name tensors of the file. */
class Case extends Fields {
  constructor(value, where, tensors) {
    super(value, where);
    this.tensors = tensors;
  }

  named(name) {
    const found = typeof name === "string" && this.tensors.get(name);
    if (!found)
      throw new BundleError(`${this.where} names the tensor ${quoted(String(name))}, which the file does not have`);
    return found;
  }

  /** The tensor that a key names, with a number of dimensions or with any. */
  tensor(key, dimensions) {
    const found = this.named(this.take(key, "string"));
    if (dimensions !== undefined && found.dims.length !== dimensions) {
      throw new BundleError(`${this.where}: ${key} has ${found.dims.length} dimensions; it must have ${dimensions}`);
    }
    return found;
  }

  /** [name, tensor] of all that an object names, under keys that are allowed. */
  tensorsByName(key, allowed) {
    const names = this.take(key, "object");
    const unknown = Object.keys(names).filter((name) => !allowed.includes(name));
    if (unknown.length) {
      throw new BundleError(`${this.where}: ${key} has ${quoted(unknown.join(", "))}; there are ${allowed.join(", ")}`);
    }
    return Object.entries(names).map(([own, name]) => [own, this.named(name)]);
  }

  /** A seed, which is a decimal string, since some languages have no 64-bit numbers in JSON. */
  seed() {
    const text = this.take("seed", "string");
    if (!/^[0-9]{1,20}$/.test(text) || BigInt(text) >= 2n ** 64n) {
      throw new BundleError(`${this.where}: seed must be the digits of a whole number from 0 to 2^64 - 1`);
    }
    return BigInt(text);
  }

  tolerance() {
    return this.number("tolerance", 0);
  }
}

/** The cases of a bundle's conformance file. */
export async function readConformance(bundle, { signal } = {}) {
  const where = bundle.where(CONFORMANCE);
  const bytes = await asked(bundle.files, CONFORMANCE, { maxSize: MAX_CONFORMANCE_BYTES, signal });
  if (bytes.length > MAX_CONFORMANCE_BYTES) {
    throw new BundleError(
      `${where} has ${bytes.length} bytes; a conformance file has at most ${MAX_CONFORMANCE_BYTES}`,
    );
  }
  const { tensors, metadata } = readSafetensors(bytes, where);
  let cases;
  try {
    cases = JSON.parse(metadata.cases);
  } catch (error) {
    throw new BundleError(`${where} is not a conformance file (${oneLine(error)})`);
  }
  if (!Array.isArray(cases) || !cases.length) throw new BundleError(`${where} holds no cases`);
  return cases.map((value, number) => new Case(value, `${where}: case ${number}`, tensors));
}
