/** What leaves the page, when it is asked for: a picture as a file, and a link. */

import { encodePng } from "../png.mjs";
import { pictureTexts } from "../recipe.mjs";

const LONGEST_NAME = 60; // characters
const LONGEST_SAVE = 60_000; // milliseconds until a browser has asked for the file, which not all do at once

/** Save a picture as a PNG with what made it, as Python writes it; `python -m runtime replay` draws it again. */
export async function download(picture) {
  const bytes = await encodePng(picture, pictureTexts(picture.recipe));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  link.download = fileName(picture);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), LONGEST_SAVE);
}

/** Such as `a-red-sneaker-7.png`. */
function fileName({ seed, recipe }) {
  const subject = recipe.prompt ?? `${recipe.bundle}-${recipe.class_label}`;
  const words = subject.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.join("-").slice(0, LONGEST_NAME)}-${seed}.png`;
}

/** Give a link to whoever takes it; resolves to what is to be said of that. */
export async function shareLink(fragment) {
  const link = new URL(fragment, location.href).href;
  try {
    await navigator.clipboard.writeText(link);
    return "The link is in the clipboard: whoever opens it here draws the same picture.";
  } catch {
    history.replaceState(null, "", fragment);
    return "This browser keeps its clipboard to itself; the link is in the address bar.";
  }
}
