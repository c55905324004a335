/** What the page says of what it is doing, of what went wrong, and of what somebody should know. */

const element = (id) => document.getElementById(id);

/**
 * Say what is being done.
 *
 * @param line read aloud by a screen reader, so one for each thing that is done and not one for each percent of it.
 * @param detail beside it, as it changes.
 * @param share done, from 0 to 1; null where it is not known, undefined where nothing is on its way.
 */
export function doing(line, detail = "", share = undefined) {
  const status = element("status");
  if (status.textContent !== line) status.textContent = line;
  element("detail").textContent = detail;
  const progress = element("progress");
  progress.hidden = share === undefined;
  if (share === null) progress.removeAttribute("value");
  else progress.value = share ?? 0;
}

/** What `doing` takes while a model is read, out of what the worker says of it. */
export function loadingInWords(name, { stage, loaded, total, kept }) {
  const amount = total ? `${inMegabytes(loaded)} of ${inMegabytes(total)}` : inMegabytes(loaded);
  const share = total ? loaded / total : null;
  if (stage === "engine") return ["Fetching the engine", amount, share];
  if (stage === "read") return [`${kept ? "Reading" : "Fetching"} ${name}`, amount, share];
  return [stage === "prove" ? "Trying the graphics card" : `Preparing ${name}`, "", null];
}

/** Say what went wrong, and whether it can be tried again. */
export function wrong(line, again = false) {
  Object.assign(element("problem"), { textContent: line, hidden: false });
  element("retry-part").hidden = !again;
}

export function nothingWrong() {
  Object.assign(element("problem"), { textContent: "", hidden: true });
  element("retry-part").hidden = true;
}

/** Show lines that somebody should know; with none, what stood there goes. */
export function notices(lines) {
  const list = element("notices");
  list.hidden = lines.length === 0;
  list.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
}

export function notice(line) {
  notices([...Array.from(element("notices").children, (item) => item.textContent), line]);
}

/** Which engine draws, and why it might be slower than it need be. */
export function drawnOn(engine) {
  const alone = " This server does not isolate the page, and without that a browser gives it one thread.";
  return `Drawn on ${engine}.${crossOriginIsolated ? "" : alone}`;
}

/** A difference as people read it. */
export function short(number) {
  return Number(number.toPrecision(3));
}

/** Bytes as people read them, such as "1.7 MB". */
function inMegabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Seconds as people read them. */
export function inSeconds(seconds) {
  return seconds < 9.95 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}
