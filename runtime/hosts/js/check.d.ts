import type { Files, LoadOptions, OnnxRuntime } from "./diffuse.d.ts";

/** How one case ended: what it was, the largest difference found, and the largest allowed. */
export interface Outcome {
  readonly case: string;
  readonly difference: number;
  readonly tolerance: number;
  readonly passed: boolean;
}

/**
 * Verify every hash and replay every case of a bundle's conformance file, one after another.
 *
 * @throws {BundleError} a file is damaged, or the conformance file speaks of what this version does not know.
 */
export function check(
  files: Files,
  ort: OnnxRuntime,
  options?: Omit<LoadOptions, "onProgress">,
): AsyncGenerator<Outcome, void, void>;
