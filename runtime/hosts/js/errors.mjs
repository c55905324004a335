/** What can go wrong, as far as the caller can mend it: runtime/errors.py. Every message is one line. */

/** A text on one line, without what a terminal acts upon: such characters as Python would write them. */
export function printable(text) {
  return text.replace(/(?! )[\p{C}\p{Z}]/gu, (character) => {
    const simple = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[character];
    const digits = character.codePointAt(0).toString(16);
    if (simple || digits.length <= 2) return simple ?? `\\x${digits.padStart(2, "0")}`;
    return digits.length <= 4 ? `\\u${digits.padStart(4, "0")}` : `\\U${digits.padStart(8, "0")}`;
  });
}

export class DiffusionError extends Error {
  constructor(message, options) {
    super(printable(message), options);
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

/** A text from elsewhere in quotes. */
export function quoted(text) {
  return JSON.stringify(text);
}

/** What a value is, for a message that wants another. */
export function kindOf(value) {
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}
