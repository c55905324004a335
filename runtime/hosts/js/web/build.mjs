/**
 * `npm run build`: the page as a folder that any web host can serve, with the models that it offers.
 *
 *     npm run build                                  with this repository's models, but for those above 1 GB
 *                                                    and those that fill in parts of pictures
 *     npm run build -- --out FOLDER BUNDLE ...       with these, by folder or name, the default one first
 */

import { cp, lstat, mkdir, mkdtemp, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { dirname, extname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { CONFORMANCE, MANIFEST, openBundle } from "../bundle.mjs";
import { BundleError, DiffusionError, RequestError, oneLine } from "../errors.mjs";
import { findBundle, folderFiles } from "../node-files.mjs";

const HOST = fileURLToPath(new URL("../", import.meta.url));
const MODELS = join(HOST, "../../../models_onnx");
const DEFAULTS = ["mnist-paper", "pocket"]; // the last of these that is there comes first
const MAX_BYTES = 2 ** 30;
// Any host says by the suffix what a file is, and a bundle is a stranger's: none of it may be a page or a script there.
const SUFFIXES = [".onnx", ".onnx_data", ".data", ".bin", ".pb", ".weights", ".safetensors", ".json"];

async function build() {
  process.chdir(process.env.INIT_CWD ?? "."); // where the command was given; npm runs it elsewhere
  const { out, bundles } = await read(process.argv.slice(2));
  await checkReplaceable(out);
  await checkBundles(bundles);
  await mkdir(dirname(out), { recursive: true });
  const aside = await mkdtemp(`${out}.partial-`); // for this user's eyes alone, which the page within is not
  try {
    const page = join(aside, "page");
    await copyPage(page);
    const models = [];
    for (const bundle of bundles) models.push(await copyBundle(bundle, page));
    await writeFile(join(page, "models.json"), JSON.stringify({ models }));
    await rm(out, { recursive: true, force: true });
    await rename(page, out);
    console.log(`${out}: the page with ${models.map(({ name }) => name).join(", ")}`);
  } finally {
    await rm(aside, { recursive: true, force: true });
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
  return { out: resolve(values.out), bundles };
}

/** Refuse to replace what no build has made. */
async function checkReplaceable(out) {
  const names = await readdir(out).catch(missing(() => []));
  if (!names.length || ["site.json", "models.json"].every((name) => names.includes(name))) return;
  throw new RequestError(`${out} holds what no build has made, and would be replaced; give --out a new folder`);
}

/** Refuse bundles that a host cannot serve side by side, or whose files a browser could take for the page's. */
async function checkBundles(bundles) {
  const names = new Set();
  for (const bundle of bundles) {
    const { name } = bundle.manifest;
    if (names.has(name)) throw new BundleError(`two bundles are called ${name}; a page has one of each name`);
    names.add(name);
    for (const { file } of bundle.entries()) {
      if (SUFFIXES.includes(extname(file))) continue;
      throw new BundleError(`${bundle.where(file)} may not be served; a bundle's files end in ${SUFFIXES.join(" ")}`);
    }
    const status = await lstat(bundle.where(CONFORMANCE)).catch(missing(() => null));
    if (status && !status.isFile()) {
      throw new BundleError(`${bundle.where(CONFORMANCE)} is a link or no file; put the file itself there`);
    }
  }
}

async function opened(model) {
  return openBundle(folderFiles(await findBundle(model)));
}

/** The repository's bundles that a page can draw with, the default one first; what is left out is said. */
async function ownBundles() {
  const found = await readdir(MODELS, { withFileTypes: true }).catch(missing(() => []));
  const names = found.filter((entry) => entry.isDirectory() || entry.isSymbolicLink()).map(({ name }) => name);
  names.sort((a, b) => DEFAULTS.indexOf(b) - DEFAULTS.indexOf(a) || a.localeCompare(b));
  const bundles = [];
  for (const name of names) {
    try {
      const bundle = await openBundle(folderFiles(join(MODELS, name)));
      checkOffered(bundle, name);
      bundles.push(bundle);
    } catch (error) {
      if (!(error instanceof DiffusionError)) throw error;
      console.log(`left out: ${error.message}`);
    }
  }
  if (!bundles.length) throw new RequestError(`there is no bundle in ${MODELS}; name one: npm run build -- BUNDLE`);
  return bundles;
}

/** Refuse what nobody has asked for, and few want. */
function checkOffered(bundle, name) {
  const bytes = bundle.entries().reduce((sum, { size }) => sum + size, 0);
  if (bytes > MAX_BYTES) throw new BundleError(`${name} has ${(bytes / 1e9).toFixed(1)} GB; name it to have it`);
  if (bundle.manifest.unet_input.length > 1) {
    throw new BundleError(`${name} fills in parts of pictures, which the page does not do`);
  }
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
  const put = (file) => copy(bundle.where(file), join(target, "models", name, file));
  for (const entry of bundle.entries()) {
    await bundle.verify(entry);
    await put(entry.file);
  }
  await put(MANIFEST);
  await put(CONFORMANCE).catch(missing(() => {})); // the page can do without
  return { name, sha256: bundle.sha256 };
}

/** What to do where a file is not there; other errors go on. */
function missing(act) {
  return (error) => {
    if (error.code !== "ENOENT") throw error;
    return act();
  };
}

async function copy(source, target) {
  await mkdir(dirname(target), { recursive: true });
  await cp(source, target);
}

try {
  await build();
} catch (error) {
  if (!(error instanceof DiffusionError) && !error.syscall) throw error;
  console.error(`error: ${oneLine(error)}`); // of the file system's, too: a folder that may not be written to
  process.exitCode = 2;
}
