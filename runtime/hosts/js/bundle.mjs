/**
 * What a bundle is, and how its files are read: runtime/bundle.py.
 *
 * A bundle may come from a stranger. Sizes are checked before anything is read, hashes before anything is run.
 */

import { BundleError, DiffusionError, oneLine } from "./errors.mjs";
import { readManifest } from "./manifest.mjs";
import { sha256 } from "./sha256.mjs";

export const MANIFEST = "manifest.json";
export const CONFORMANCE = "conformance.safetensors";
const MAX_MANIFEST_BYTES = 64 * 2 ** 20;

/** A checked manifest, with the files that it speaks of. They are verified when they are read, not before. */
export class Bundle {
  /**
   * @param files where they come from, as diffuse.d.ts has it.
   * @param manifest as JSON has it, checked.
   * @param plans by name, checked.
   * @param manifestSha256 of manifest.json.
   */
  constructor(files, manifest, plans, manifestSha256) {
    Object.assign(this, { files, manifest, plans, sha256: manifestSha256 });
  }

  /** What messages call a file. */
  where(name) {
    return placeOf(this.files, name);
  }

  /** The graph of a role in a variant. */
  graph(role, variant) {
    const { graphs } = this.manifest;
    if (!Object.hasOwn(graphs, role) || !Object.hasOwn(graphs[role], variant)) {
      const present = Object.entries(graphs).flatMap(([each, variants]) =>
        Object.keys(variants).map((v) => `${each}/${v}`),
      );
      throw new BundleError(`${this.manifest.name} has no graph ${role}/${variant}; it has ${present.join(", ")}`);
    }
    return graphs[role][variant];
  }

  /** Every file but the manifest and the conformance file; one that two graphs share comes once. */
  entries() {
    const { graphs, conditioning } = this.manifest;
    const all = Object.values(graphs)
      .flatMap((variants) => Object.values(variants))
      .flatMap(filesOf);
    if (conditioning.kind === "text") all.push(conditioning.tokenizer);
    return [...new Map(all.map((entry) => [entry.file, entry])).values()];
  }

  /** See that a file is the manifest's, whatever its size. */
  async verify(entry, { signal } = {}) {
    if (this.files.path) await this.path(entry, { signal });
    else await this.read(entry, { signal });
  }

  /** Where a file lies, after whoever has it has checked its size and its hash. */
  async path(entry, { signal, onProgress } = {}) {
    const { size, sha256: expected } = entry;
    return this.files.path(entry, { size, maxSize: size, sha256: expected, signal, onProgress });
  }

  /** A file's bytes, after its size and its hash have been checked. */
  async read(entry, { signal, onProgress } = {}) {
    const { file, size, sha256: expected } = entry;
    const bytes = await asked(this.files, file, { size, maxSize: size, sha256: expected, signal, onProgress });
    if (bytes.length !== size) {
      throw new BundleError(
        `${this.where(file)} has ${bytes.length} bytes where the manifest says ${size}; fetch it again`,
      );
    }
    if ((await sha256(bytes)) !== expected) {
      throw new BundleError(
        `${this.where(file)} does not have the SHA-256 of the manifest; it was altered or damaged: fetch it again`,
      );
    }
    return bytes;
  }
}

/** A graph's own file, and those that its weights lie in. */
export function filesOf(graph) {
  return [graph, ...graph.external_data];
}

/** Read and check a bundle's manifest. */
export async function openBundle(files, { signal } = {}) {
  const where = placeOf(files, MANIFEST);
  const bytes = await asked(files, MANIFEST, { maxSize: MAX_MANIFEST_BYTES, signal });
  if (bytes.length > MAX_MANIFEST_BYTES) {
    throw new BundleError(`${where} has ${bytes.length} bytes; a manifest has at most ${MAX_MANIFEST_BYTES}`);
  }
  let value;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new BundleError(`${where} is not JSON (${oneLine(error)})`);
  }
  const plans = readManifest(value, where);
  return new Bundle(files, deepFrozen(value), plans, await sha256(bytes));
}

/** A file's bytes as whoever has them gives them; whatever goes wrong there is one line. */
export async function asked(files, name, options) {
  options.signal?.throwIfAborted();
  let bytes;
  try {
    bytes = await (name === MANIFEST ? files.manifest(options) : files.read(name, options));
  } catch (error) {
    options.signal?.throwIfAborted();
    if (error instanceof DiffusionError) throw error;
    throw new BundleError(`${placeOf(files, name)} cannot be read (${oneLine(error)})`, { cause: error });
  }
  options.signal?.throwIfAborted();
  if (!(bytes instanceof Uint8Array)) throw new BundleError(`${placeOf(files, name)} was not read as a Uint8Array`);
  return bytes;
}

function placeOf(files, name) {
  return files.name ? `${files.name}/${name}` : name;
}

/** JSON that nobody can change any more, however deep it is. */
function deepFrozen(value) {
  const pending = [value];
  while (pending.length) {
    const each = pending.pop();
    if (each === null || typeof each !== "object") continue;
    Object.freeze(each);
    for (const child of Object.values(each)) pending.push(child);
  }
  return value;
}
