/**
 * Where pictures are drawn: a worker, so that the page never freezes.
 *
 * It is told `{ kind: "open", job, model, engine }`, `{ kind: "draw", job, request }`, `{ kind: "check", job }`,
 * `{ kind: "forget", job }`, and `{ kind: "cancel", job }` with the number of a job that is to end. With the same number
 * it says what happens: `described` when the manifest is checked, `loading`, `ready`; `step`, `drawn`; `outcome`,
 * `checked`; `forgotten`; `failed` or `cancelled`; and `said`, a line that somebody should read.
 */

import { Tokenizer } from "../vendor/tokenizers.min.mjs";
import { openBundle } from "../bundle.mjs";
import { check } from "../check.mjs";
import { load } from "../diffuse.mjs";
import { DiffusionError, oneLine } from "../errors.mjs";
import { describe } from "./description.mjs";
import { engines } from "./engine.mjs";
import { FetchError } from "./fetched.mjs";
import { ModelFiles, forget } from "./model-files.mjs";
import { prove } from "./proof.mjs";

let opened = null; // the model that was opened last: its pipeline, its files, and the engine that it runs on
let last = Promise.resolve();
const running = new Map(); // what ends a job, by its number

self.addEventListener("message", ({ data }) => {
  if (data.kind === "cancel") running.get(data.job)?.abort();
  else perform(data);
});

/** One job after another; a model to open ends those before it. */
function perform(job) {
  if (job.kind === "open") for (const each of running.values()) each.abort();
  const ending = new AbortController();
  running.set(job.job, ending);
  last = last.then(async () => {
    const say = (kind, told) => self.postMessage({ kind, job: job.job, ...told });
    try {
      ending.signal.throwIfAborted();
      await JOBS[job.kind](job, say, ending.signal);
    } catch (error) {
      if (ending.signal.aborted) say("cancelled");
      else say("failed", { message: inWords(error) });
    }
    running.delete(job.job);
  });
}

const JOBS = {
  async open({ model, engine: wanted }, say, signal) {
    const before = opened;
    opened = null;
    await before?.pipeline.dispose();
    const files = new ModelFiles(model, (line) => say("said", { line }));
    const { manifest } = await openBundle(files, { signal });
    say("described", { description: describe(manifest) });
    const { found, gpu } = await engines(wanted);
    for (const engine of found) {
      try {
        opened = await openOn(engine, files, say, signal);
        say("ready", { engine: engine.inWords, gpu, files: engine.files, kept: files.keep });
        return;
      } catch (error) {
        if (engine === found.at(-1) || signal.aborted || error instanceof FetchError) throw error;
        say("said", { line: `The graphics card cannot draw this (${inWords(error)}), so the processor does.` });
      }
    }
  },

  async draw({ request }, say, signal) {
    const began = performance.now();
    for await (const step of theOpened().pipeline.denoise({ ...request, signal })) {
      say("step", { row: step.row, rows: step.rows, preview: step.preview?.[0] ?? null });
      await breath(); // in which the page may say that it is enough
      signal.throwIfAborted();
      if (step.row < step.rows) continue;
      const { images, warnings } = await step.result();
      say("drawn", { picture: images[0], warnings, seconds: (performance.now() - began) / 1000 });
    }
  },

  async check(job, say, signal) {
    const { files, ort, options } = theOpened();
    for await (const outcome of check(files, ort, { ...options, signal })) {
      say("outcome", { outcome });
      await breath();
    }
    say("checked");
  },

  async forget(job, say) {
    await forget();
    say("forgotten");
  },
};

async function openOn(engine, files, say, signal) {
  const ort = await engine.open(signal, (loaded, total) => say("loading", { stage: "engine", loaded, total }));
  const { executionProviders, threads } = engine;
  const options = { executionProviders, threads, tokenizer: Tokenizer };
  if (engine.doubtful) {
    say("loading", { stage: "prove" });
    await prove(files, ort, { ...options, signal });
  }
  const onProgress = (progress) => say("loading", { ...progress, kept: !files.fetching });
  const pipeline = await load(files, ort, { ...options, signal, onProgress });
  await files.tidy();
  return { pipeline, files, ort, options };
}

function theOpened() {
  if (!opened) throw new DiffusionError("there is no model to draw with; choose one");
  return opened;
}

/** A pause in which messages arrive; those that wait are heard before it ends. */
function breath() {
  return new Promise((resolve) => setTimeout(resolve));
}

function inWords(error) {
  if (error instanceof DiffusionError) return error.message;
  if (error instanceof RangeError || /out of memory|Aborted\(OOM/i.test(String(error))) {
    return "there is not enough memory for this model in this browser";
  }
  return oneLine(error);
}
