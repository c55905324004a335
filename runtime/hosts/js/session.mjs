/**
 * Graphs, loaded and checked, when they are first needed: runtime/session.py and runtime/networks.py.
 *
 * ONNX Runtime believes whatever graph it is given. Here a graph has the inputs and outputs that its manifest says, and
 * its weights lie in no file that the manifest does not name.
 */

import { filesOf } from "./bundle.mjs";
import { BundleError, EngineError, RequestError, oneLine } from "./errors.mjs";
import { checkExternalData } from "./external-data.mjs";
import { checkWhole, shown } from "./limits.mjs";
import { inWords, sameSignature } from "./signatures.mjs";
import { tensor } from "./tensor.mjs";

const DEFAULT_VARIANT = "fp32";
const MAX_THREADS = 1024;
const NOTHING = 4; // ONNX Runtime's log severity: what goes wrong is thrown, and said once
// ONNX Runtime holds weights inside bytes that it is given two and a half times, those of a file once.
const MAX_MODEL_BYTES = 2 ** 26;
// What a manifest calls the execution providers that people name shortly.
const PROVIDERS = {
  cpu: "CPUExecutionProvider",
  wasm: "CPUExecutionProvider",
  cuda: "CUDAExecutionProvider",
  webgpu: "WebGpuExecutionProvider",
  dml: "DmlExecutionProvider",
  coreml: "CoreMLExecutionProvider",
  webnn: "WebNNExecutionProvider",
};
// What variants for them end in, after their precision: "fp32-cpu".
const ENGINES = { cpu: "cpu", wasm: "cpu", cuda: "cuda" };
const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array };

/** Of PRECISION or PRECISION-ENGINE, the names that variants have. */
function precisionOf(variant) {
  return variant.split("-", 1)[0];
}

/** One graph, ready to run. */
class Session {
  constructor(session, ort, graph) {
    Object.assign(this, { session, ort, graph });
    this.last = Promise.resolve(); // WebAssembly runs one evaluation at a time, and refuses a second one
  }

  /** Load a graph after its files have been checked: sizes, hashes, and where its weights lie. */
  static async open(bundle, graph, ort, { executionProviders, threads, signal, watch }) {
    const where = bundle.where(graph.file);
    const { model, externalData } = await checkedModel(bundle, graph, { signal, watch });
    signal?.throwIfAborted();
    watch?.("open", graph.file);
    const options = { logSeverityLevel: NOTHING, enableMemPattern: false };
    if (executionProviders) options.executionProviders = executionProviders;
    if (threads !== undefined) options.intraOpNumThreads = threads;
    if (externalData.length) options.externalData = externalData;
    let session;
    try {
      session = await ort.InferenceSession.create(model, options);
    } catch (error) {
      const reason = oneLine(error);
      if (/no available backend/.test(reason)) throw new EngineError(`ONNX Runtime cannot run here: ${reason}`);
      throw new BundleError(`${where} is not a graph that this ONNX Runtime can load: ${reason}`);
    }
    for (const [kind, found] of [
      ["inputs", session.inputMetadata],
      ["outputs", session.outputMetadata],
    ]) {
      const declared = found.map(({ name, type, shape }) => ({ name, dtype: type, shape: shape ?? [] }));
      if (!sameSignature(declared, graph[kind])) {
        await session.release();
        throw new BundleError(
          `${where} has ${kind} ${inWords(declared)} where the manifest says ${inWords(graph[kind])}; export it again`,
        );
      }
    }
    return new Session(session, ort, graph);
  }

  /** Evaluate the graph: every input by name, as `{ data, dims }`; returns every output by name, likewise. */
  async run(inputs) {
    const feeds = {};
    for (const { name, dtype } of this.graph.inputs) {
      feeds[name] = new this.ort.Tensor(dtype, cast(inputs[name].data, dtype), inputs[name].dims);
    }
    const turn = this.last.then(() => this.session.run(feeds));
    this.last = turn.catch(() => {});
    let outputs;
    try {
      outputs = await turn;
    } catch (error) {
      const shapes = this.graph.inputs.map(({ name, dtype }) => `${name} ${dtype} (${inputs[name].dims.join(", ")})`);
      throw new RequestError(`${this.graph.file} failed on ${shapes.join(", ")}: ${oneLine(error)}`, { cause: error });
    }
    return Object.fromEntries(Object.entries(outputs).map(([name, { data, dims }]) => [name, tensor(data, dims)]));
  }

  async release() {
    await this.last;
    await this.session.release();
  }
}

/** Numbers in the array that a dtype takes. */
function cast(data, dtype) {
  const Wanted = ARRAYS[dtype];
  if (Wanted === undefined) throw new BundleError(`dtype ${dtype} at a graph's boundary is not done in this host`);
  if (data instanceof Wanted) return data;
  return Wanted.from(data, dtype === "int64" ? BigInt : Number);
}

/** A graph as ONNX Runtime is given it, all files checked: its bytes, or the path of one with large weights. */
async function checkedModel(bundle, graph, { signal, watch }) {
  const progress = (entry) => ({ signal, onProgress: watch && ((loaded) => watch("read", entry.file, loaded)) });
  const model = await bundle.read(graph, progress(graph));
  watch?.("read", graph.file, graph.size);
  checkExternalData(
    model,
    bundle.where(graph.file),
    new Map(graph.external_data.map(({ file, size }) => [file, size])),
  );
  if (bundle.files.path && (graph.external_data.length || graph.size > MAX_MODEL_BYTES)) {
    const [path] = await Promise.all(filesOf(graph).map((entry) => bundle.path(entry, progress(entry))));
    for (const { file, size } of graph.external_data) watch?.("read", file, size);
    return { model: path, externalData: [] };
  }
  const externalData = [];
  for (const entry of graph.external_data) {
    externalData.push({ path: entry.file, data: await bundle.read(entry, progress(entry)) });
    watch?.("read", entry.file, entry.size);
  }
  return { model, externalData };
}

/** The sessions of one bundle, by role. */
export class Networks {
  /**
   * Load nothing yet.
   *
   * @param bundle where the graphs come from.
   * @param ort the ONNX Runtime that runs them.
   * @param options `executionProviders`, `threads` and `variant`, as `load` takes them.
   */
  constructor(bundle, ort, { executionProviders, threads, variant } = {}) {
    const known = [
      ...new Set(Object.values(bundle.manifest.graphs).flatMap((variants) => Object.keys(variants))),
    ].sort();
    if (variant !== undefined && !known.includes(variant)) {
      throw new RequestError(`variant ${shown(variant)} is unknown; ${bundle.manifest.name} has ${known.join(", ")}`);
    }
    if (executionProviders !== undefined && !Array.isArray(executionProviders)) {
      const hint = 'it must be a list, the best first, such as ["cpu"]';
      throw new RequestError(`executionProviders is ${shown(executionProviders)}; ${hint}`);
    }
    if (threads !== undefined) {
      checkWhole("threads", threads, 1, MAX_THREADS);
      if (ort.env?.wasm) ort.env.wasm.numThreads = threads; // where it is WebAssembly, sessions have no say in it
    }
    Object.assign(this, { bundle, ort, executionProviders, threads, variant });
    this.sessions = new Map();
  }

  /** Where graphs run, as people name it. */
  get provider() {
    const first = this.executionProviders?.[0];
    return first?.name ?? first ?? (this.ort.env?.versions?.web ? "wasm" : "cpu");
  }

  /** Which ONNX Runtime this is. */
  get engineVersion() {
    const { node, web, common } = this.ort.env?.versions ?? {};
    return node ?? web ?? common ?? "unknown";
  }

  /**
   * Which of a role's graphs is used: the one asked for; else of its precision, of float32, of the first.
   *
   * Of a precision the variant for the provider comes before the portable one, and one for another is not taken.
   */
  variantOf(role) {
    const { graphs } = this.bundle.manifest;
    const variants = Object.hasOwn(graphs, role) ? Object.keys(graphs[role]) : [];
    if (variants.includes(this.variant)) return this.variant;
    const precisions = [this.variant ?? DEFAULT_VARIANT, DEFAULT_VARIANT, ...variants].map(precisionOf);
    const ways = precisions.flatMap((precision) => [`${precision}-${ENGINES[this.provider]}`, precision]);
    const runnable = variants.filter((name) => this.runsOn(graphs[role][name]));
    return [...ways, ...variants].find((name) => runnable.includes(name)) ?? variants[0] ?? DEFAULT_VARIANT;
  }

  /** Whether a graph is for the execution provider here. */
  runsOn(graph) {
    return graph.providers.includes("any") || graph.providers.includes(this.providerName);
  }

  /** What a manifest calls the execution provider. */
  get providerName() {
    return PROVIDERS[this.provider] ?? this.provider;
  }

  /** The graph that is used for a role. */
  graph(role) {
    return this.runnable(this.bundle.graph(role, this.variantOf(role)));
  }

  /** A graph, if it is for the execution provider here. */
  runnable(graph) {
    if (!this.runsOn(graph)) {
      const providers = graph.providers.join(", ");
      throw new BundleError(
        `${graph.file} is for ${providers}, not for ${this.providerName}; choose another provider or variant`,
      );
    }
    return graph;
  }

  /** What helps where a role's numbers are no longer finite; empty if it is float32 already. */
  wider(role) {
    const used = this.variantOf(role);
    if (precisionOf(used) === DEFAULT_VARIANT) return "";
    const there = Object.hasOwn(this.bundle.manifest.graphs[role], DEFAULT_VARIANT);
    const first = there ? "" : ", which has to be exported first";
    return `the variant ${used} may be too narrow: take ${DEFAULT_VARIANT}${first}`;
  }

  /** The session for a role, loaded if it is not there yet. `signal` and `watch` speak of loading. */
  session(role, { signal, watch } = {}) {
    if (!this.sessions.has(role)) {
      const opened = this.open(this.graph(role), { signal, watch });
      this.sessions.set(role, opened);
      opened.catch(() => this.sessions.delete(role));
    }
    return this.sessions.get(role);
  }

  /** Load a graph of the bundle, for whoever keeps it. */
  open(graph, { signal, watch } = {}) {
    const { executionProviders, threads } = this;
    return Session.open(this.bundle, this.runnable(graph), this.ort, { executionProviders, threads, signal, watch });
  }

  /** Give the engine's memory back. */
  async release() {
    const opened = [...this.sessions.values()];
    this.sessions.clear();
    for (const session of await Promise.allSettled(opened)) await session.value?.release();
  }
}
