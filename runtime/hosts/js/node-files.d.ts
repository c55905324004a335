import type { Files } from "./diffuse.d.ts";

/** The files of a bundle in a folder. */
export function folderFiles(folder: string): Files & { readonly name: string };

/**
 * The folder of a bundle given by path, or by name: looked for in `$DIFFUSION_ANYWHERE_MODELS` and `./models_onnx`.
 *
 * @throws {BundleError} nowhere to be found; the message says which names there are.
 */
export function findBundle(model: string): Promise<string>;

/**
 * Find out before the work, not after it, whether a file can be written.
 *
 * @throws {RequestError} the folder is missing or unwritable, or the file exists and may not be replaced.
 */
export function checkWritable(path: string, overwrite?: boolean): Promise<void>;

/**
 * Write aside, then move into place: at every moment `path` is the old file or the whole new one.
 *
 * @throws {RequestError} it cannot be written; nothing is left behind.
 */
export function writeWhole(path: string, bytes: Uint8Array): Promise<void>;
