/**
 * What the tests draw with: the repository's bundles, one of text that whoever runs the tests may name, and changed
 * copies.
 */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { folderFiles } from "../node-files.mjs";

process.env.ORT_DISABLE_TELEMETRY ??= "1";
const MODELS = fileURLToPath(new URL("../../../../models_onnx/", import.meta.url));

/** The folder of a bundle of classes that the repository has. */
export const CLASSES = `${MODELS}mnist-paper`;

/** The folder of a small bundle of text: $DIFFUSION_ANYWHERE_TEXT_BUNDLE, or pocket where it is there; else null. */
export const TEXT =
  [process.env.DIFFUSION_ANYWHERE_TEXT_BUNDLE, `${MODELS}pocket`].find((path) => path && existsSync(path)) ?? null;

/** For tests of text: `test(name, withText, ...)` runs them where there is such a bundle. */
export const withText = {
  skip: TEXT === null && "there is no bundle of text; DIFFUSION_ANYWHERE_TEXT_BUNDLE names one",
};

/** A bundle's files, some of them others: bytes by name, or a function of the manifest's JSON value. */
export function changed(folder, { manifest, ...others }) {
  const files = folderFiles(folder);
  return {
    name: "changed",
    async manifest(options) {
      const bytes = await files.manifest(options);
      if (!manifest) return bytes;
      const value = JSON.parse(new TextDecoder().decode(bytes));
      const replaced = manifest(value);
      return replaced instanceof Uint8Array ? replaced : new TextEncoder().encode(JSON.stringify(value));
    },
    async read(name, options) {
      return others[name] ?? files.read(name, options);
    },
  };
}
