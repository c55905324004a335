/**
 * Files of a bundle in a folder, and files that are written whole: the only module that is Node's own, beside the CLI.
 */

import { createHash, randomBytes } from "node:crypto";
import { access, constants, lstat, open, readFile, readdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, isAbsolute, join } from "node:path";

import { MANIFEST } from "./bundle.mjs";
import { BundleError, RequestError, quoted } from "./errors.mjs";

const MODELS_VARIABLE = "DIFFUSION_ANYWHERE_MODELS";
const CHUNK_BYTES = 2 ** 24;

export function folderFiles(folder) {
  return {
    name: folder,
    manifest: (options) => readPlainFile(join(folder, MANIFEST), options),
    read: (name, options) => readPlainFile(join(folder, name), options),
    async path({ file, sha256 }, options) {
      const path = join(folder, file);
      await plainFileSize(path, options);
      if ((await hashOf(path, options)) !== sha256) {
        throw new BundleError(
          `${path} does not have the SHA-256 of the manifest; it was altered or damaged: fetch it again`,
        );
      }
      return path;
    },
  };
}

/** Bytes of a file that is no link to another place, and no larger than it may be. */
async function plainFileSize(path, { size, maxSize }) {
  let status;
  try {
    status = await lstat(path);
  } catch (error) {
    if (error.code === "ENOENT") throw new BundleError(`${path} is not there; the bundle needs it as a plain file`);
    throw new BundleError(`${path} cannot be read (${error.code})`);
  }
  if (!status.isFile()) {
    const kind = status.isSymbolicLink() ? "a symbolic link" : "no file";
    throw new BundleError(`${path} is ${kind}; the bundle needs it as a plain file`);
  }
  if (size !== undefined && status.size !== size) {
    throw new BundleError(`${path} has ${status.size} bytes where the manifest says ${size}; fetch it again`);
  }
  if (status.size > maxSize) throw new BundleError(`${path} has ${status.size} bytes; it may have at most ${maxSize}`);
  return status.size;
}

async function readPlainFile(path, options) {
  const size = await plainFileSize(path, options);
  try {
    const bytes = await readFile(path, { signal: options.signal });
    options.onProgress?.(size);
    return bytes;
  } catch (error) {
    options.signal?.throwIfAborted();
    throw new BundleError(`${path} cannot be read (${error.code ?? error.message})`);
  }
}

/** A file's SHA-256, in hexadecimal digits, without holding the file. */
async function hashOf(path, { signal, onProgress }) {
  const hash = createHash("sha256");
  let file;
  try {
    file = await open(path);
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    for (let position = 0, read = -1; read !== 0; position += read) {
      signal?.throwIfAborted();
      ({ bytesRead: read } = await file.read(chunk, 0, CHUNK_BYTES, position));
      hash.update(chunk.subarray(0, read));
      onProgress?.(position + read);
    }
  } catch (error) {
    signal?.throwIfAborted();
    throw new BundleError(`${path} cannot be read (${error.code ?? error.message})`);
  } finally {
    await file?.close();
  }
  return hash.digest("hex");
}

export async function findBundle(model) {
  const named = process.env[MODELS_VARIABLE];
  const folders = [...(named ? [named] : []), "models_onnx"];
  const candidates = [model, ...(isAbsolute(model) ? [] : folders.map((folder) => join(folder, model)))];
  for (const candidate of candidates) {
    if (await isKind(join(candidate, MANIFEST), "isFile")) return candidate;
  }
  if (await isKind(model, "isDirectory")) throw new BundleError(`${model} is not a bundle: it holds no ${MANIFEST}`);
  const found = await Promise.all(folders.map(bundlesIn));
  const known = [...new Set(found.flat())].sort();
  const hint = known.length ? `known here: ${known.join(", ")}` : "make one with: python -m export";
  throw new BundleError(`there is no bundle ${quoted(model)}; ${hint}`);
}

async function isKind(path, kind) {
  try {
    return (await stat(path))[kind]();
  } catch {
    return false; // not there, a name that is too long, or a folder that may not be looked into
  }
}

async function bundlesIn(folder) {
  try {
    const names = await readdir(folder);
    const there = await Promise.all(names.map((name) => isKind(join(folder, name, MANIFEST), "isFile")));
    return names.filter((_, i) => there[i]);
  } catch {
    return [];
  }
}

export async function checkWritable(path, overwrite = false) {
  const folder = dirname(path);
  if (!(await isKind(folder, "isDirectory")))
    throw new RequestError(`the folder ${folder} does not exist; make it first`);
  if (await isKind(path, "isDirectory")) throw new RequestError(`${path} is a folder; give the name of a file in it`);
  const there = await lstat(path).then(
    () => true,
    (error) => error.code !== "ENOENT" && error.code,
  );
  if (there === true && !overwrite) throw new RequestError(`${path} exists; choose another name or add --overwrite`);
  if (typeof there === "string") throw new RequestError(`${path} cannot be written (${there})`);
  try {
    await access(folder, constants.W_OK);
  } catch (error) {
    throw new RequestError(`${folder} cannot be written to (${error.code})`);
  }
}

export async function writeWhole(path, bytes) {
  const aside = join(dirname(path), `.${basename(path)}.${randomBytes(4).toString("hex")}`);
  let file;
  try {
    file = await open(aside, "wx"); // a file of its own, and no link is followed
    await file.writeFile(bytes);
    await file.sync();
    await file.close();
    await rename(aside, path);
  } catch (error) {
    await file?.close().catch(() => {});
    if (file) await rm(aside, { force: true });
    throw new RequestError(`${path} cannot be written (${error.code ?? error.message})`);
  }
}
