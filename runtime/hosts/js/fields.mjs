/** JSON from strangers, read key by key: runtime/fields.py. Nothing missing, mistyped or left over goes unnoticed. */

import { BundleError, kindOf, quoted } from "./errors.mjs";

const IS = {
  string: (value) => typeof value === "string",
  number: (value) => typeof value === "number",
  boolean: (value) => typeof value === "boolean",
  list: Array.isArray,
  object: (value) => value !== null && typeof value === "object" && !Array.isArray(value),
  null: (value) => value === null,
};

export class Fields {
  constructor(value, where) {
    if (!IS.object(value)) throw new BundleError(`${where} must be an object, not ${kindOf(value)}`);
    this.value = value;
    this.left = new Set(Object.keys(value));
    this.where = where;
  }

  has(key) {
    return this.left.has(key);
  }

  /** A key's value, which has to be of one of the kinds: "string", "number", "boolean", "list", "object", "null". */
  take(key, ...kinds) {
    if (!this.left.delete(key)) throw new BundleError(`${this.where} lacks the key ${quoted(key)}`);
    const value = this.value[key];
    if (!kinds.some((kind) => IS[kind](value))) {
      throw new BundleError(`${this.where}: ${key} must be ${kinds.join(" or ")}, not ${kindOf(value)}`);
    }
    return value;
  }

  number(key, least = -Infinity, most = Infinity) {
    const value = this.take(key, "number");
    if (!Number.isFinite(value) || value < least || value > most) {
      throw new BundleError(`${this.where}: ${key} is ${value}; it must lie between ${least} and ${most}`);
    }
    return value;
  }

  count(key, least = 1, most = Number.MAX_SAFE_INTEGER) {
    const value = this.take(key, "number");
    if (!Number.isSafeInteger(value) || value < least || value > most) {
      throw new BundleError(`${this.where}: ${key} is ${value}; it must be a whole number from ${least} to ${most}`);
    }
    return value;
  }

  oneOf(key, choices) {
    const value = this.take(key, "string");
    if (!choices.includes(value)) {
      throw new BundleError(`${this.where}: ${key} is ${quoted(value)}; it must be one of ${choices.join(", ")}`);
    }
    return value;
  }

  strings(key) {
    const values = this.take(key, "list");
    if (!values.every(IS.string)) throw new BundleError(`${this.where}: ${key} must be a list of strings`);
    return values;
  }

  /** Read every object of a list. */
  objects(key, read) {
    return this.take(key, "list").map((value, i) => this.child(value, `${key}[${i}]`, read));
  }

  /** Read every object of an object; returns [name, what was read] of each. */
  mapping(key, read) {
    return Object.entries(this.take(key, "object")).map(([name, value]) => [
      name,
      this.child(value, `${key}.${name}`, read),
    ]);
  }

  /** Read the object under a key, or null where that is allowed. */
  nested(key, read, { optional = false } = {}) {
    const value = this.take(key, ...(optional ? ["object", "null"] : ["object"]));
    return value === null ? null : this.child(value, key, read);
  }

  /** Read a nested object whole: whatever `read` leaves over is an unknown key. */
  child(value, path, read) {
    const fields = new Fields(value, `${this.where}: ${path}`);
    const result = read(fields);
    fields.finish();
    return result;
  }

  finish() {
    if (this.left.size) {
      throw new BundleError(
        `${this.where} has unknown keys: ${[...this.left]
          .sort()
          .map((key) => quoted(key))
          .join(", ")}`,
      );
    }
  }
}
