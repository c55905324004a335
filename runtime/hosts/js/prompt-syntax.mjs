/**
 * What people type into prompts beside words: runtime/prompt_syntax.py, with the same names in the same order.
 *
 *     (word)        counts 1.1 times as much, ((word)) 1.21 times
 *     (word:1.3)    counts 1.3 times as much
 *     [word]        counts 1.1 times less
 *     \( \) \[ \] \\   are the characters themselves
 *     BREAK         begins the next chunk of 75 tokens
 *
 * Nothing is ever wrong: a bracket without its counterpart is text. What other programs understand and nobody does here
 * is replaced by what comes nearest, or is text, and each is named in the notes.
 */

import { printable, quoted } from "./errors.mjs";

const [ROUND, SQUARE] = [1.1, 1 / 1.1];
const MAX_WEIGHT = 100;
const SHOWN = 60; // characters of a prompt that a message repeats
const COUNTERPART = { ")": "(", "]": "[" };
// Python's \s and \w, which are not those of JavaScript.
export const SPACE = String.raw`(?:(?!\uFEFF)[\s\x1C-\x1F\x85])`;
export const WORD = String.raw`[\p{L}\p{N}_]`;
const NUMBER = String.raw`[+\-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)`;
const LEXEME = /\\[()[\]\\]|[()[\]]|[^()[\]\\]+|\\/g;
const WEIGHT = new RegExp(`:${SPACE}*(${NUMBER})${SPACE}*$`, "u");
const EXTRA_NETWORK = new RegExp(`<[A-Za-z]${WORD}*:[^<>]*>`, "gu");
const alone = (word) => `(?<!${WORD})${word}(?!${WORD})`;
// In the web interfaces each part of a composition may end in a weight.
const COMPOSED = new RegExp(`(?::${SPACE}*${NUMBER}${SPACE}*)?${alone("AND")}`, "gu");
const BREAK = new RegExp(alone("BREAK"), "gu");
const OPEN = String.raw`(?<!\\)\[`;
// Of what is edited or alternated; weights may stand in it.
const PART = String.raw`(?:\([^\(\)\[\]]*\)|[^\(\)\[\]:\|])*`;
const EDITED = new RegExp(String.raw`${OPEN}((?:${PART}:){1,2})${SPACE}*${NUMBER}${SPACE}*\]`, "gu");
const ALTERNATED = new RegExp(String.raw`${OPEN}(${PART})\|[^\[\]]*\]`, "gu");
const MAX_NESTED = 8; // edits within edits

/**
 * Understand a prompt, whatever it is.
 *
 * @returns `{ sections, notes }`: between breaks, at least one, lists of `{ text, weight }`; and what is not done here.
 */
export function parse(prompt) {
  const [text, notes] = replaceForeign(prompt);
  const sections = [[]];
  for (const [part, weight] of weighted(text)) {
    const [first, ...others] = part.split(BREAK);
    sections.at(-1).push([first, weight]);
    for (const other of others) sections.push([[other, weight]]);
  }
  const last = sections
    .at(-1)
    .map(([part]) => part)
    .join("");
  if (sections.length > 1 && isSpace(last)) sections.pop(); // a break at the end begins nothing
  return { sections: sections.map(joined), notes };
}

/** Parts that count alike in one piece, since words go on where nothing changes. */
function joined(parts) {
  const pieces = [];
  for (const [text, weight] of parts) {
    if (!text) continue;
    if (pieces.at(-1)?.weight === weight) pieces.at(-1).text += text;
    else pieces.push({ text, weight });
  }
  return pieces;
}

/** Put what comes nearest in the place of what is not done here. */
function replaceForeign(prompt) {
  const notes = [];
  let composed = false;
  let text = prompt.replace(EXTRA_NETWORK, (found) => {
    notes.push(
      `${shortened(found)} is left out: LoRAs are merged when a model is exported (--lora), others not at all`,
    );
    return "";
  });
  text = text.replace(COMPOSED, () => {
    composed = true;
    notes.push("AND is taken for a comma: prompts are not composed");
    return ",";
  });
  if (composed) text = text.replace(WEIGHT, "");
  for (let i = 0, before = null; i < MAX_NESTED && text !== before; i++) {
    before = text;
    text = text.replace(EDITED, (found, parts) => {
      const each = [...parts.matchAll(new RegExp(`(${PART}):`, "gu"))].map(([, part]) => part);
      const chosen = each.reverse().find((part) => !isSpace(part)) ?? "";
      notes.push(
        `${shortened(found)} is taken for ${quoted(shortened(chosen))} from the first step on: ` +
          "prompts do not change halfway",
      );
      return chosen;
    });
    text = text.replace(ALTERNATED, (found, first) => {
      notes.push(`${shortened(found)} is taken for ${quoted(shortened(first))}: prompts do not alternate`);
      return first;
    });
  }
  for (const found of notUnderstood(text)) notes.push(`${found} is read as text: it is not understood`);
  return [text, [...new Set(notes)]];
}

/** What still looks like an edit or an alternation, shortened: square brackets around a bar, or before a number. */
function* notUnderstood(text) {
  const lexemes = text.match(LEXEME) ?? [];
  const begins = [0];
  for (const lexeme of lexemes) begins.push(begins.at(-1) + lexeme.length);
  const closing = new Map([...counterparts(lexemes)].filter(([end]) => lexemes[end] === "]"));
  const opening = new Map([...closing].map(([end, begin]) => [begin, end]));
  const [within, found] = [[], new Set()];
  lexemes.forEach((lexeme, i) => {
    if (opening.has(i)) within.push(i);
    else if (closing.has(i)) {
      within.pop();
      if (WEIGHT.test(lexemes[i - 1])) found.add(closing.get(i));
    } else if (within.length && lexeme.includes("|")) found.add(within.at(-1));
  });
  for (const begin of [...found].sort((a, b) => a - b)) {
    yield shortened(text.slice(begins[begin], Math.min(begins[opening.get(begin) + 1], begins[begin] + 2 * SHOWN)));
  }
}

/** As much of a text as a message repeats, on one line. */
export function shortened(text) {
  const line = text
    .split(new RegExp(`${SPACE}+`, "u"))
    .filter(Boolean)
    .join(" ");
  const characters = Array.from(line.slice(0, 2 * SHOWN + 2)); // not halves of surrogate pairs
  return printable(characters.length <= SHOWN ? line : `${characters.slice(0, SHOWN).join("")}…`);
}

function isSpace(text) {
  return new RegExp(`^${SPACE}*$`, "u").test(text);
}

/** The parts of a prompt, in order, with their weights; brackets that have a counterpart are gone. */
function weighted(text) {
  const lexemes = text.match(LEXEME) ?? [];
  const closing = counterparts(lexemes);
  const opening = new Map([...closing].map(([end, begin]) => [begin, end]));
  const explicit = new Map();
  for (const end of closing.keys()) {
    const found = lexemes[end] === ")" && WEIGHT.exec(lexemes[end - 1]);
    if (found) explicit.set(end, Number(found[1]));
  }
  const [parts, weights] = [[], [1]];
  lexemes.forEach((lexeme, i) => {
    if (opening.has(i)) {
      const usual = lexeme === "(" ? ROUND : SQUARE;
      weights.push(bounded(weights.at(-1) * (explicit.get(opening.get(i)) ?? usual)));
    } else if (closing.has(i)) weights.pop();
    else {
      const own = explicit.has(i + 1) ? lexeme.replace(WEIGHT, "") : lexeme;
      parts.push([own.length === 2 && own[0] === "\\" ? own[1] : own, weights.at(-1)]);
    }
  });
  return parts;
}

/** Within +-MAX_WEIGHT: beyond it no picture is left, and far beyond no number. */
function bounded(weight) {
  return Math.max(-MAX_WEIGHT, Math.min(MAX_WEIGHT, weight));
}

/** Where each bracket that closes one has that one, as a Map; whatever stands open in between is text. */
function counterparts(lexemes) {
  const found = new Map();
  const stillOpen = [];
  const waiting = { "(": 0, "[": 0 };
  lexemes.forEach((lexeme, i) => {
    if (lexeme in waiting) {
      stillOpen.push([lexeme, i]);
      waiting[lexeme] += 1;
    } else if (waiting[COUNTERPART[lexeme]]) {
      let kind, begin;
      while (kind !== COUNTERPART[lexeme]) {
        [kind, begin] = stillOpen.pop();
        waiting[kind] -= 1;
      }
      found.set(i, begin);
    }
  });
  return found;
}
