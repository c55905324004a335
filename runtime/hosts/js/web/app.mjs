/** The page: what its controls do, and what it shows of what the worker says. */

import { oneLine } from "../errors.mjs";
import { remember } from "./address.mjs";
import { Drawer } from "./drawer.mjs";
import { allow, clearProblem, fill, listen, offer, read, showProblems } from "./form.mjs";
import { download, shareLink } from "./give-away.mjs";
import { offered } from "./model-files.mjs";
import { keepForOffline } from "./offline.mjs";
import { asRequest, checked, engineOf, fromFragment, inWords, newSeed, toFragment } from "./settings.mjs";
import { Shelf } from "./shelf.mjs";
import { Stage } from "./stage.mjs";
import { doing, drawnOn, inSeconds, loadingInWords, nothingWrong, notice, notices, short, wrong } from "./status.mjs";

const element = (id) => document.getElementById(id);

const LASTING = ["prompt", "negative", "seed", "engine"]; // fields that stay as they are when the model is another

const stage = new Stage({
  frame: element("frame"),
  canvas: element("picture"),
  film: element("film"),
  filmPart: element("film-part"),
  filmStep: element("film-step"),
});
const shelf = new Shelf(element("shelf"), element("shelf-part"), goBackTo);
const drawer = new Drawer(({ kind, ...told }) => HEARD[kind](told));

let models = []; // that are offered
let model = null; // the one that was chosen
let description = null; // of it, from when its manifest is there
let asked = {}; // of it, by a link, until then
let ready = false; // whether it can draw
let task = null; // what it does, or will as soon as it can: { kind: "draw" or "check", begun, ... }
let shown = null; // the last finished picture that was looked at, as the shelf has it

// What the worker says.

const HEARD = {
  described(told) {
    description = told.description;
    offer(description);
    use(asked);
    allowWhatCanBeDone();
    remember(fragmentOfForm);
  },

  loading(progress) {
    doing(...loadingInWords(model.name, progress));
  },

  ready({ engine, gpu, files, kept }) {
    ready = true;
    element("about-engine").textContent = drawnOn(engine);
    element("engine-part").hidden = !gpu;
    for (const id of ["check", "forget"]) element(id).hidden = false;
    allowWhatCanBeDone();
    void keepForOffline({ files, kept }, (line) => (element("about-offline").textContent = line));
    if (task) beginDrawing();
    else doing("Ready");
  },

  step({ row, rows, preview }) {
    task.firstStep ??= performance.now();
    stage.step(preview, row, rows);
    const left = row > 1 ? ((performance.now() - task.firstStep) / (row - 1)) * (rows - row) : 0;
    const time = left > 1000 ? `, about ${inSeconds(left / 1000)} left` : "";
    doing("Drawing", `step ${row} of ${rows}${time}`, row / rows);
  },

  drawn({ picture, warnings, seconds }) {
    const { settings } = task;
    stage.finish(picture);
    shown = { picture, steps: stage.steps, settings, description, about: inWords(settings, description) };
    shelf.add(shown);
    ended();
    for (const line of warnings) notice(line);
    doing(`Drawn in ${inSeconds(seconds)}: ${shown.about.slice(0, 200)}, seed ${picture.seed}`);
  },

  outcome({ outcome }) {
    task.outcomes.push(outcome);
    doing("Checking", `${task.outcomes.length} done: ${outcome.case}`, null);
  },

  checked() {
    const { outcomes } = task;
    const failed = outcomes.filter(({ passed }) => !passed);
    ended();
    const off = ({ difference, tolerance }) => `off by ${short(difference)}, where ${short(tolerance)} is allowed`;
    notices(failed.map((each) => `${each.case} is ${off(each)}.`));
    doing(
      `Checked: ${outcomes.length - failed.length} of ${outcomes.length} cases of ${model.name} pass in this browser`,
    );
  },

  cancelled() {
    if (!task) return;
    brokenOff();
    doing("Cancelled");
  },

  said({ line }) {
    notice(line);
  },

  failed({ message }) {
    if (!ready) noModel();
    brokenOff();
    doing(ready ? "That went wrong" : "The model is not there");
    wrong(message, !ready);
  },

  broken({ message }) {
    ready = false;
    HEARD.failed({ message: `What draws has stopped: ${message}` });
  },

  forgotten() {
    element("forget").hidden = true;
    element("about-offline").textContent = "No model is kept in this browser any more.";
  },
};

// What is done with the controls.

listen(changed, draw);
element("another").addEventListener("click", () => {
  setSeed();
  draw();
});
element("dice").addEventListener("click", setSeed);
element("cancel").addEventListener("click", cancel);
element("retry").addEventListener("click", () => (model ? open(model, asked) : begin()));
element("forget").addEventListener("click", () => ready && !task && drawer.forget());
element("check").addEventListener("click", check);
element("download").addEventListener("click", async () => {
  if (!shown || task) return;
  try {
    await download(shown.picture);
  } catch (error) {
    wrong(`The picture cannot be saved: ${oneLine(error)}`);
  }
});
element("share").addEventListener("click", async () => {
  if (!description || task) return;
  const { settings } = shown ?? checked(read(description), description);
  doing(await shareLink(toFragment(settings, shown?.description ?? description)));
});
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && task) cancel();
});
addEventListener("hashchange", () => followLink(location.hash));

function changed(control) {
  const { id } = control;
  if (id === "model" || id === "engine") {
    notices([]);
    open(models[element("model").selectedIndex], settingsInForm());
  } else if (description) remember(fragmentOfForm);
  else if (LASTING.includes(id)) asked[id] = control.value;
}

function setSeed() {
  element("seed").value = String(newSeed());
  clearProblem("seed");
  changed(element("seed"));
}

/** What of the form stays when the model is another. */
function settingsInForm() {
  return Object.fromEntries(LASTING.map((id) => [id, element(id).value]));
}

/** Where the form leads, as far as that can be drawn. */
function fragmentOfForm() {
  if (!description) return null;
  const { settings, problems } = checked(read(description), description);
  return Object.keys(problems).length ? null : toFragment(settings, description);
}

function draw() {
  if (!description || task) return;
  const { settings, problems } = checked(read(description), description);
  if (description.kind === "text" && !settings.prompt.trim()) problems.prompt = "Say what to draw.";
  showProblems(problems);
  if (Object.keys(problems).length) return;
  nothingWrong();
  notices([]);
  fill(settings); // what was left empty among it
  remember(fragmentOfForm);
  busyWith({ kind: "draw", settings });
  if (ready) beginDrawing();
}

function beginDrawing() {
  const { settings } = task;
  task.begun = true;
  stage.begin(description, inWords(settings, description));
  stage.comeIntoSight();
  doing("Drawing", "", null);
  drawer.draw(asRequest(settings, description));
}

function check() {
  if (!ready || task) return;
  nothingWrong();
  notices([]);
  busyWith({ kind: "check", begun: true, outcomes: [] });
  doing("Checking", "", null);
  drawer.check();
}

function busyWith(wanted) {
  task = wanted;
  element("cancel").hidden = false;
  allowWhatCanBeDone();
}

function cancel() {
  if (task.begun) drawer.cancel();
  else ended();
}

/** What was being done is not finished; a picture makes way for the one before, which can be saved. */
function brokenOff() {
  const unfinished = task?.kind === "draw" && task.begun;
  ended();
  if (unfinished && shown) show(shown);
}

/** Nothing is being done any more; whoever stood on the button that ended it goes on. */
function ended() {
  task = null;
  allowWhatCanBeDone();
  if (document.activeElement === element("cancel")) element("draw").focus();
  element("cancel").hidden = true;
}

/** Have every button say whether it does something now. */
function allowWhatCanBeDone() {
  allow(description && !task, element("draw"), element("another"), element("share"));
  allow(shown && !task, element("download"));
  allow(ready && !task, element("check"), element("forget"));
  shelf.allow(!task);
}

/** Show a finished picture, and how it came about. */
function show(entry) {
  shown = entry;
  stage.begin(entry.picture, entry.about);
  stage.finish(entry.picture, entry.steps);
}

// Models, and links to pictures of them.

/** Read a model; `link` is what to put into the form when it is known what that has to offer. */
function open(chosen, link) {
  model = chosen;
  asked = link;
  ready = false;
  description = null;
  brokenOff();
  nothingWrong();
  element("model").selectedIndex = models.indexOf(model);
  element("engine").value = engineOf(link);
  doing(`Reading ${model.name}`, "", null);
  drawer.open(model, engineOf(link));
}

/** The model cannot be had; what stands in the form is kept for when it can. */
function noModel() {
  if (description) asked = read(description);
  description = null;
}

/** Put what a link asks for into the form, and say what of it cannot be. */
function use(link) {
  const prompt = link.prompt || element("prompt").placeholder; // so that there is something to draw at once
  const { settings, problems } = checked({ ...link, prompt }, description);
  fill(settings);
  for (const line of Object.values(problems)) notice(`The link is wrong here, and this is left out: ${line}.`);
}

function followLink(fragment) {
  const link = fromFragment(fragment);
  const named = models.find(({ name }) => name === link.model);
  notices([]);
  if (link.model !== undefined && !named) {
    const names = models.map(({ name }) => name).join(", ");
    notice(`There is no model “${link.model.slice(0, 40)}” here, only ${names}. ${models[0].name} is taken instead.`);
  }
  const wanted = named ?? models[0];
  if (wanted === model && description && engineOf(link) === element("engine").value) use(link);
  else open(wanted, link);
}

function goBackTo(entry) {
  if (task) return false;
  show(entry);
  const fragment = toFragment(entry.settings, entry.description);
  history.replaceState(null, "", fragment);
  followLink(fragment);
  return true;
}

async function begin() {
  if (!isSecureContext) {
    doing("Nothing can be drawn here");
    wrong(
      "This page has to be opened over https, or from the machine that serves it: a browser gives it no storage here.",
    );
    return;
  }
  nothingWrong();
  try {
    models = await offered();
  } catch (error) {
    doing("There is no model");
    wrong(error.message, true);
    return;
  }
  element("model").replaceChildren(...models.map(({ name }) => new Option(name)));
  element("model").disabled = models.length < 2;
  followLink(location.hash);
}

await begin();
