/**
 * Drawing step by step: who draws looks on, shows what there is so far, and stops when it is enough: runtime/steps.py.
 */

import { RequestError } from "./errors.mjs";

/** What `Pipeline.denoise` yields after each row of the plan. */
class Step {
  #show;
  #preview;
  #finish;

  constructor({ row, rows, images, sample, predOriginalSample }, warnings, show, finish) {
    Object.assign(this, { row, rows, images, sample, predOriginalSample, warnings });
    this.#show = show;
    this.#finish = finish;
  }

  /** What the pictures are going to be, made when it is asked for. */
  get preview() {
    return (this.#preview ??= this.#show(this.predOriginalSample));
  }

  /** The finished pictures; they are decoded once, however often they are asked for. */
  async result() {
    if (this.row < this.rows) {
      throw new RequestError(`step ${this.row} of ${this.rows} has no result; it is there after the last one`);
    }
    return this.#finish();
  }
}

/**
 * Rows as steps; the last one is followed by decoding, so that a loop that ends leaves the result behind.
 *
 * @param drawing the rows, which return the result.
 * @param warnings of the request; they are there before the first row.
 * @param show a preview of predicted samples.
 * @param onProgress told of each row, before it is yielded.
 */
export async function* steps(drawing, warnings, show, onProgress) {
  let result;
  const finish = () => (result ??= drawing.next().then(({ value }) => value));
  for (let last = false; !last;) {
    const { value: row } = await drawing.next();
    last = row.row === row.rows;
    onProgress?.(row.row, row.rows);
    yield new Step(row, warnings, show, finish);
  }
  await finish();
}
