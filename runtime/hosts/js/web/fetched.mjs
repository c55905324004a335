/** What the page's own server has, or one line that says why it cannot be had. */

import { BundleError } from "../errors.mjs";

/** Where the page is: the folder of index.html. */
export const SITE = new URL("../", import.meta.url);

/** A file cannot be had, or is not what it should be. Of a model's files another engine would take the same. */
export class FetchError extends BundleError {}

/**
 * An answer of the server.
 *
 * @param path from index.html.
 * @param what messages call it.
 * @param options of `fetch`.
 * @throws {FetchError} there is none.
 */
export async function fetched(path, what, options = {}) {
  const { signal } = options;
  let answer;
  try {
    answer = await fetch(new URL(path, SITE), options);
  } catch (error) {
    signal?.throwIfAborted();
    throw new FetchError(`${what} cannot be fetched: there is no connection to ${SITE.host}`, { cause: error });
  }
  if (answer.ok) return answer;
  throw new FetchError(
    `${what} cannot be fetched: ${SITE.host} answers ${answer.status} ${answer.statusText}`.trimEnd(),
  );
}

/** The body of an answer, read no further than it may be long. */
export async function whole(answer, { what, size, maxSize, signal, onProgress }) {
  const pieces = [];
  let loaded = 0;
  try {
    for (const reader = answer.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
      loaded += value.length;
      if (loaded > maxSize) {
        await reader.cancel();
        throw new FetchError(`${what} is longer than the ${maxSize} bytes that it may have`);
      }
      onProgress?.(loaded);
    }
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof FetchError) throw error;
    const of = size === undefined ? "" : ` of ${size}`;
    throw new FetchError(`${what}: the connection was lost after ${loaded}${of} bytes. Try again`, { cause: error });
  }
  if (size !== undefined && loaded !== size) {
    throw new FetchError(`${what} has ${loaded} bytes where its manifest says ${size}`);
  }
  const bytes = new Uint8Array(loaded);
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}
