/** What can go wrong, as far as the caller can mend it: runtime/errors.py. Every message is one line. */

export class DiffusionError extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
  }
}

export class BundleError extends DiffusionError {}

export class EngineError extends DiffusionError {}

export class RequestError extends DiffusionError {}

const LONGEST = 300; // characters

/** The message of an error of some library, short enough for a line of ours. */
export function oneLine(error) {
  const message = error instanceof Error ? error.message : String(error);
  return message.trim().replace(/\s+/g, " ").slice(0, LONGEST);
}

/** A text from elsewhere in quotes, with nothing in it that a terminal would obey. */
export function quoted(text) {
  return JSON.stringify(text).replace(
    /[\x7f-\x9f\u2028\u2029]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** What a value is, for a message that wants another. */
export function kindOf(value) {
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}
