/**
 * From a prompt to the ids that a text encoder takes: runtime/prompt.py, without learned words.
 *
 * A text encoder reads `max_length` ids at once. A longer prompt is read in chunks, as the web interfaces do: a chunk
 * that is full ends after its last comma, if that is among its last `COMMA_WITHIN` tokens.
 */

import { BundleError, RequestError, kindOf, oneLine, quoted } from "./errors.mjs";
import { SPACE, WORD, parse, shortened } from "./prompt-syntax.mjs";

const MAX_TOKENIZER_BYTES = 64 * 2 ** 20; // CLIP's own has 4 MB
const MAX_CHARACTERS = 10 ** 6;
const MAX_CHUNKS = 32; // time and memory grow with every chunk, and nobody types so many
const COMMA_WITHIN = 20; // tokens
const MAX_NOTES = 4; // things that a warning names
// What cannot but name a learned word. "<lora:x:1>" is another matter, and "<3" is text.
const ABSENT = new RegExp(
  String.raw`<${WORD}(?:(?!${SPACE})[^<>:])*>${WORD}*|(?<!${WORD})embedding:${SPACE}*(?:(?!${SPACE})[^,\(\)\[\]])+`,
  "giu",
);
const BYTE_LEVEL_SPLIT = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;

/** A bundle's tokenizer. */
export class PromptTokenizer {
  /**
   * Read a tokenizer.
   *
   * @param bundle where it comes from.
   * @param Tokenizer the class of `@huggingface/tokenizers`.
   */
  static async open(bundle, Tokenizer, { signal, watch } = {}) {
    const { tokenizer: entry } = bundle.manifest.conditioning;
    const where = bundle.where(entry.file);
    if (typeof Tokenizer !== "function") {
      throw new RequestError(
        `${bundle.manifest.name} takes text; give load the class Tokenizer of @huggingface/tokenizers`,
      );
    }
    if (entry.size > MAX_TOKENIZER_BYTES) {
      throw new BundleError(`${where} is too large; a tokenizer has at most ${MAX_TOKENIZER_BYTES} bytes`);
    }
    const bytes = await bundle.read(entry, {
      signal,
      onProgress: watch && ((loaded) => watch("read", entry.file, loaded)),
    });
    try {
      const value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
      const read = new Tokenizer({ ...value, pre_tokenizer: spelledOut(value.pre_tokenizer) }, {});
      return new PromptTokenizer(bundle.manifest, read, lowercases(value.normalizer));
    } catch (error) {
      throw new BundleError(`${where} is not a tokenizer of the tokenizers library (${oneLine(error)})`);
    }
  }

  constructor({ name, conditioning }, tokenizer, toLowerCase) {
    Object.assign(this, { name, conditioning, tokenizer, toLowerCase });
    const comma = this.tokens(",");
    this.comma = comma.length === 1 ? comma[0] : null;
    this.known = conditioning.known_words && new Set(conditioning.known_words);
  }

  /** Tokens that fit between begin and end. */
  get room() {
    return this.conditioning.max_length - 2;
  }

  /** The ids of a text without any syntax, `max_length` of them: begin, as much as fits, end, padding. */
  ids(text) {
    checkText(text);
    return this.framed(this.tokens(text).slice(0, this.room));
  }

  /**
   * What the text encoder reads of a prompt, at least one chunk: a list of `{ ids, weights }`, `max_length` of each.
   *
   * @param warn called with a line where something is not read, or is not done here, or is a word that a model of a
   *   small world does not know.
   */
  chunks(prompt, warn = () => {}) {
    checkText(prompt);
    const parsed = parse(prompt);
    this.warnOf(parsed, warn);
    const weighted = parsed.sections.map((section) =>
      section.flatMap(({ text, weight }) => this.tokens(text).map((token) => ({ token, weight }))),
    );
    const found = weighted.flatMap((tokens) => divided(tokens, this.room, this.comma));
    const read = found.slice(0, MAX_CHUNKS);
    if (found.length > MAX_CHUNKS) {
      const count = (chunks) => chunks.reduce((sum, chunk) => sum + chunk.length, 0);
      const rest = this.text(found[MAX_CHUNKS].map(({ token }) => token));
      warn(
        `the prompt has ${count(found)} tokens in ${found.length} chunks, of which ${count(read)} in ${MAX_CHUNKS} ` +
          `are read; cut off is ${quoted(shortened(rest))}`,
      );
    }
    return read.map((tokens) => this.chunk(tokens));
  }

  /** Say in one warning what is not done here, and in others what is read as words, and not known as such. */
  warnOf({ sections, notes }, warn) {
    const texts = sections.flatMap((section) => section.map(({ text }) => text));
    const absent = texts.flatMap((text) => text.match(ABSENT) ?? []);
    const all = new Set([
      ...notes,
      ...absent.map((name) => `${shortened(name)} is read as text: no embedding is called so`),
    ]);
    const told = [...all].slice(0, MAX_NOTES).join("; ");
    if (all.size) warn(all.size > MAX_NOTES ? `${told}; and ${all.size - MAX_NOTES} more such things` : told);
    this.warnOfUnknownWords(texts.join(" "), warn);
  }

  warnOfUnknownWords(text, warn) {
    if (this.known === null) return;
    const words = new Set(text.toLowerCase().match(new RegExp(`${WORD}+(?:-${WORD}+)*`, "gu")));
    const unknown = [...words].filter((word) => !this.known.has(word));
    if (unknown.length) {
      const verb = unknown.length === 1 ? "is" : "are";
      warn(
        `${shortened(unknown.map(quoted).join(", "))} ${verb} not in this model's world; ` +
          `it knows: ${[...this.known].join(", ")}`,
      );
    }
  }

  /** The ids of a text, without begin and end. */
  tokens(text) {
    // Python's library lower-cases letter by letter, where JavaScript writes another sigma at the end of a word.
    const same = this.toLowerCase ? text.replaceAll("Σ", "σ") : text;
    const { ids } = this.tokenizer.encode(same, { add_special_tokens: false });
    const { vocab_size: size } = this.conditioning;
    const wrong = ids.find((id) => !Number.isSafeInteger(id) || id < 0 || id >= size);
    if (wrong !== undefined || ids.includes(undefined)) {
      throw new BundleError(`the tokenizer of ${this.name} gives id ${wrong}, but vocab_size is ${size}`);
    }
    return ids;
  }

  /** Words again. CLIP's tokenizer marks their ends, and its file names no decoder that would put spaces there. */
  text(ids) {
    return this.tokenizer.decode(ids).replaceAll("</w>", " ").trim();
  }

  framed(ids) {
    const { bos_token_id: bos, eos_token_id: eos, pad_token_id: pad, max_length: length } = this.conditioning;
    return [bos, ...ids, eos, ...new Array(length - 2 - ids.length).fill(pad)];
  }

  chunk(tokens) {
    const weights = new Array(this.conditioning.max_length).fill(1);
    tokens.forEach(({ weight }, i) => (weights[i + 1] = weight));
    return { ids: this.framed(tokens.map(({ token }) => token)), weights };
  }
}

/** Whether a normalizer of the tokenizers library makes small letters. */
function lowercases(normalizer) {
  return normalizer?.type === "Lowercase" || (normalizer?.normalizers ?? []).some(lowercases);
}

/**
 * The same pre-tokenizer, with the split that is in ByteLevel as a step of its own: in there JavaScript's \s counts,
 * which unlike that of the tokenizers library has U+FEFF among spaces.
 */
function spelledOut(step) {
  if (step?.type === "Sequence") return { ...step, pretokenizers: step.pretokenizers.map(spelledOut) };
  if (step?.type !== "ByteLevel" || step.use_regex === false || step.add_prefix_space) return step;
  const split = { type: "Split", pattern: { Regex: BYTE_LEVEL_SPLIT }, behavior: "Isolated", invert: false };
  return { type: "Sequence", pretokenizers: [split, { ...step, use_regex: false }] };
}

/** A section's tokens in chunks of at most `room`; one that is empty, if there are none. */
function divided(tokens, room, comma) {
  const chunks = [];
  let [begin, lastComma] = [0, -1];
  tokens.forEach(({ token }, end) => {
    if (token === comma) lastComma = end;
    if (end - begin === room) {
      const afterComma = token !== comma && lastComma >= Math.max(begin, end - COMMA_WITHIN);
      const cut = afterComma ? lastComma + 1 : end;
      chunks.push(tokens.slice(begin, cut));
      begin = cut;
    }
  });
  return [...chunks, tokens.slice(begin)];
}

/** Refuse what cannot be a prompt. */
function checkText(prompt) {
  if (typeof prompt !== "string") throw new RequestError(`a prompt must be a string, not ${kindOf(prompt)}`);
  if (prompt.length > MAX_CHARACTERS && Array.from(prompt).length > MAX_CHARACTERS) {
    throw new RequestError(`the prompt has more than ${MAX_CHARACTERS} characters, which is all that is read`);
  }
  if (/\p{Surrogate}/u.test(prompt)) {
    throw new RequestError("the prompt is not text: it has half a surrogate pair; give it in UTF-8");
  }
}

/** One prompt or several as a list. */
export function texts(prompt) {
  const found = Array.isArray(prompt) ? prompt : [prompt];
  found.forEach(checkText);
  return found;
}
