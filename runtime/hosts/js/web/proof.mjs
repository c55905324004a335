/**
 * Whether a graphics card computes what it should: where a network is too large for it, some answer with zeros, without
 * a complaint. So it replays the model's conformance file once, and what it draws has to be that picture, but for
 * the rounding of graphics cards, which is coarser than what the tolerances were made for.
 */

import { check } from "../check.mjs";
import { EngineError } from "../errors.mjs";
import { FetchError } from "./fetched.mjs";

const SLACK = 30; // times the tolerance: three hundredths of a picture's range, where zeros are out by all of it
const NOTE = "proven-on-webgpu";

/**
 * @param files of the model, as model-files.mjs has them; that it was proven is noted there.
 * @param ort the ONNX Runtime.
 * @param options as `check` takes them.
 * @throws {EngineError} it does not.
 */
export async function prove(files, ort, options) {
  if (await files.isNoted(NOTE)) return;
  try {
    for await (const { case: name, difference, tolerance } of check(files, ort, options)) {
      if (!(difference <= SLACK * tolerance)) throw new EngineError(`${name} is wrong by ${difference.toPrecision(3)}`);
    }
  } catch (error) {
    if (!(error instanceof FetchError)) throw error;
    throw new EngineError(`there is nothing to prove it by: ${error.message}`, { cause: error });
  }
  await files.note(NOTE);
}
