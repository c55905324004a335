/**
 * `npm run build`: the page as a folder that any web host can serve, with the models that it offers.
 *
 *     npm run build                                  with this repository's models, but for those above 1 GB
 *                                                    and those that fill in parts of pictures
 *     npm run build -- --out FOLDER BUNDLE ...       with these, by folder or name, the default one first
 */

import { cp, mkdir, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { CONFORMANCE, MANIFEST, openBundle } from "../bundle.mjs";
import { DiffusionError, RequestError } from "../errors.mjs";
import { findBundle, folderFiles } from "../node-files.mjs";

const START = process.env.INIT_CWD ?? process.cwd(); // npm runs this elsewhere
const HOST = fileURLToPath(new URL("../", import.meta.url));
const MODELS = join(HOST, "../../../models_onnx");
const DEFAULTS = ["mnist-paper", "pocket"]; // the last of these that is there comes first
const MAX_BYTES = 2 ** 30;

async function build() {
  const { out, bundles } = await read(process.argv.slice(2));
  const partial = `${out}.partial`;
  await rm(partial, { recursive: true, force: true });
  try {
    await copyPage(partial);
    const models = [];
    for (const bundle of bundles) models.push(await copyBundle(bundle, partial));
    await writeFile(join(partial, "models.json"), JSON.stringify({ models }));
    await rm(out, { recursive: true, force: true });
    await rename(partial, out);
    console.log(`${out}: the page with ${models.map(({ name }) => name).join(", ")}`);
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
}

/** The command line. */
async function read(words) {
  let parsed;
  try {
    const options = { out: { type: "string", default: join(HOST, "dist") } };
    parsed = parseArgs({ args: words, options, allowPositionals: true });
  } catch (error) {
    throw new RequestError(`${error.message}; see the head of ${fileURLToPath(import.meta.url)}`);
  }
  const { values, positionals } = parsed;
  const bundles = positionals.length ? await Promise.all(positionals.map(opened)) : await ownBundles();
  return { out: resolve(START, values.out), bundles };
}

/** A bundle by its folder or name, which are looked for where the command was given. */
async function opened(model) {
  return openBundle(folderFiles(await findBundle(resolve(START, model)).catch(() => findBundle(model))));
}

/** The repository's bundles that a page can draw with, the default one first. */
async function ownBundles() {
  const found = await readdir(MODELS, { withFileTypes: true }).catch(() => []);
  const names = found.filter((entry) => entry.isDirectory()).map(({ name }) => name);
  names.sort((a, b) => DEFAULTS.indexOf(b) - DEFAULTS.indexOf(a) || a.localeCompare(b));
  const bundles = await Promise.all(names.map((name) => openBundle(folderFiles(join(MODELS, name)))));
  const fitting = bundles.filter((bundle) => bytesOf(bundle) <= MAX_BYTES && bundle.manifest.unet_input.length === 1);
  if (!fitting.length) throw new RequestError(`there is no bundle in ${MODELS}; name one: npm run build -- BUNDLE`);
  return fitting;
}

/** The page's own files, as site.json lists them. */
async function copyPage(target) {
  const text = await readFile(join(HOST, "web/site.json"), "utf8");
  const { always, when_used: whenUsed, files } = JSON.parse(text);
  for (const address of [...always, ...whenUsed]) {
    const source = join(HOST, files[address] ?? address);
    await copy(source, join(target, address)).catch(
      missing(() => {
        throw new RequestError(`${source} is not there; run: npm ci --ignore-scripts --prefix ${HOST}`);
      }),
    );
  }
  await writeFile(join(target, "site.json"), text);
}

/** A bundle's files, each of which is what its manifest says; returns what models.json says of it. */
async function copyBundle(bundle, target) {
  const { name } = bundle.manifest;
  const put = (file) => copy(join(bundle.files.name, file), join(target, "models", name, file));
  for (const entry of bundle.entries()) {
    await bundle.verify(entry);
    await put(entry.file);
  }
  await put(MANIFEST);
  await put(CONFORMANCE).catch(missing(() => {})); // the page can do without
  return { name, sha256: bundle.sha256 };
}

function bytesOf(bundle) {
  return bundle.entries().reduce((sum, { size }) => sum + size, 0);
}

/** What to do where a file is not there; other errors go on. */
function missing(act) {
  return (error) => {
    if (error.code !== "ENOENT") throw error;
    act();
  };
}

async function copy(source, target) {
  await mkdir(dirname(target), { recursive: true });
  await cp(source, target);
}

try {
  await build();
} catch (error) {
  if (!(error instanceof DiffusionError)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
}
