/**
 * Which ONNX Runtime runs in this browser: on the graphics card by WebGPU, or on the processor by WebAssembly.
 *
 * Both lie beside the page, as the npm package has them, and only the one that is used is fetched.
 */

import { EngineError } from "../errors.mjs";
import { FetchError, fetched, whole } from "./fetched.mjs";

const MAX_THREADS = 8; // more wait for each other longer than they compute, in networks that fit into a page
const MAX_BYTES = 2 ** 27;

/** Threads need memory that they share, which a page has only where its server isolates it. */
const threads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS) : 1;

/** Whether this browser has a graphics card to offer. One that the processor imitates is slower than WebAssembly. */
async function hasGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    return Boolean(adapter) && !adapter.info?.isFallbackAdapter;
  } catch {
    return false;
  }
}

/**
 * The engines to try, best first, and whether there is a graphics card to choose.
 *
 * @param wanted "wasm", "webgpu", which is tried whatever the browser says of it, or "auto".
 * @returns `{ found, gpu }`: `found` are `{ inWords, executionProviders, doubtful, threads, files, open }`, of which
 *   `open` resolves to an ONNX Runtime for `load`, `doubtful` are those that have to prove themselves, and `files` are
 *   the addresses of what was fetched for it.
 */
export async function engines(wanted) {
  const gpu = await hasGpu();
  const found = [];
  if (wanted === "webgpu" || (wanted === "auto" && gpu)) {
    found.push({
      inWords: "the graphics card, by WebGPU",
      executionProviders: ["webgpu"],
      doubtful: true,
      threads,
      files: ["vendor/ort.webgpu.bundle.min.mjs", "vendor/ort-wasm-simd-threaded.asyncify.wasm"],
      open: opener(() => import("../vendor/ort.webgpu.bundle.min.mjs"), "ort-wasm-simd-threaded.asyncify.wasm"),
    });
  }
  found.push({
    inWords: `the processor, by WebAssembly in ${threads > 1 ? `${threads} threads` : "one thread"}`,
    executionProviders: ["wasm"],
    doubtful: false,
    threads,
    files: ["vendor/ort.wasm.bundle.min.mjs", "vendor/ort-wasm-simd-threaded.wasm"],
    open: opener(() => import("../vendor/ort.wasm.bundle.min.mjs"), "ort-wasm-simd-threaded.wasm"),
  });
  return { found, gpu };
}

/** The large part of it is fetched here, where its progress is seen and it can be broken off. */
function opener(imported, file) {
  return async (signal, onProgress) => {
    const ort = await imported();
    ort.env.wasm.wasmBinary ||= await binary(file, signal, onProgress);
    return ort;
  };
}

async function binary(file, signal, onProgress) {
  try {
    const answer = await fetched(`vendor/${file}`, "the engine", { signal });
    const total = Number(answer.headers.get("Content-Encoding") ? 0 : answer.headers.get("Content-Length"));
    const progress = (loaded) => onProgress(loaded, total);
    const bytes = await whole(answer, { what: "the engine", maxSize: MAX_BYTES, signal, onProgress: progress });
    return bytes.buffer;
  } catch (error) {
    if (!(error instanceof FetchError)) throw error;
    throw new EngineError(error.message, { cause: error }); // the other one may be there
  }
}
