/** The form: what it offers for a model, what stands in it, and what is wrong with that. */

const FIELDS = ["prompt", "negative", "seed", "steps", "guidance", "engine"];
const TO_FOCUS = { class: () => document.querySelector("#classes input:checked") };

const element = (id) => document.getElementById(id);

/** Offer what a model has. */
export function offer(description) {
  const { kind, names, knownWords, plans } = description;
  element("of-text").hidden = kind !== "text";
  element("of-class").hidden = kind !== "class";
  element("classes").replaceChildren(...(names ?? []).map(classChoice));
  element("words").hidden = !knownWords?.length;
  element("known-words").replaceChildren(...(knownWords ?? []).map(wordButton));
  const groups = new Map(plans.map(({ inWords }) => [inWords, plans.filter((plan) => plan.inWords === inWords)]));
  element("steps").replaceChildren(
    ...[...groups].flatMap(([label, own]) => samplerChoice(label, own, groups.size > 1)),
  );
}

/** The steps of a sampler; under its name, where there are several. */
function samplerChoice(label, plans, several) {
  const options = plans.map(({ name, steps }) => new Option(String(steps), name));
  if (!several) return options;
  const group = Object.assign(document.createElement("optgroup"), { label });
  group.append(...options);
  return [group];
}

function classChoice(name, label) {
  const choice = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "class", value: String(label) });
  const text = Object.assign(document.createElement("span"), { textContent: name });
  choice.append(input, text);
  return choice;
}

function wordButton(word) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: word });
  button.addEventListener("click", () => {
    const prompt = element("prompt");
    prompt.value = `${prompt.value.trimEnd()} ${word}`.trimStart();
    prompt.dispatchEvent(new Event("input", { bubbles: true }));
  });
  const item = document.createElement("li");
  item.append(button);
  return item;
}

/** Write settings into the form. */
export function fill({ prompt, negative, label, plan, guidance, seed, engine }) {
  const texts = { prompt, negative, seed: String(seed), guidance: String(guidance), steps: plan, engine };
  for (const [id, text] of Object.entries(texts)) element(id).value = text;
  if (negative) element("negative-part").open = true;
  element("guidance-range").value = String(guidance);
  const choice = document.querySelector(`#classes input[value="${label}"]`);
  if (choice) choice.checked = true;
  for (const field of [...FIELDS, "class"]) clearProblem(field);
}

/** What stands in the form, as text, by the names of settings.mjs. */
export function read({ kind, plans, names }) {
  const asked = Object.fromEntries(FIELDS.map((id) => [id, element(id).value]));
  const plan = plans.find(({ name }) => name === asked.steps);
  Object.assign(asked, { sampler: plan.sampler, steps: String(plan.steps) });
  if (kind === "class") asked.class = names[Number(document.querySelector("#classes input:checked").value)];
  return asked;
}

/** Say what is wrong with fields, beside them, and go to the first. */
export function showProblems(problems) {
  for (const [field, line] of Object.entries(problems)) {
    const place = element(`${field}-problem`);
    Object.assign(place, { textContent: line, hidden: false });
    element(field)?.setAttribute("aria-invalid", "true");
  }
  const [first] = Object.keys(problems);
  if (first) (TO_FOCUS[first]?.() ?? element(first)).focus();
}

export function clearProblem(field) {
  const place = element(`${field}-problem`);
  if (place) Object.assign(place, { textContent: "", hidden: true });
  element(field)?.removeAttribute("aria-invalid");
}

/**
 * Hear what is changed.
 *
 * @param changed called after each change.
 * @param submitted called when a picture is asked for: by the button, or by Enter in a line or in the prompt.
 */
export function listen(changed, submitted) {
  const form = element("form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submitted();
  });
  form.addEventListener("input", ({ target }) => {
    if (target.id === "film") return; // which asks for nothing
    if (target.id === "guidance-range") element("guidance").value = target.value;
    if (target.id === "guidance" && target.value) element("guidance-range").value = target.value;
    clearProblem(target.id === "guidance-range" ? "guidance" : target.name || target.id);
    changed(target);
  });
  element("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}

/** Let buttons be pressed, or have them say that they do nothing now; they keep the focus that they may have. */
export function allow(can, ...buttons) {
  for (const button of buttons) {
    if (can) button.removeAttribute("aria-disabled");
    else button.setAttribute("aria-disabled", "true");
  }
}
