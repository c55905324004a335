/**
 * The sampling loop of diffusion-anywhere in JavaScript: Node and the browser share it.
 *
 * ```js
 * import * as ort from "onnxruntime-node"; // or onnxruntime-web
 * import { Tokenizer } from "@huggingface/tokenizers";
 * import { load } from "diffusion-anywhere";
 *
 * const pipeline = await load(files, ort, { tokenizer: Tokenizer });
 * const { images, warnings } = await pipeline({ prompt: "a red sneaker on a white background", seed: 7n });
 *
 * for await (const step of pipeline.denoise({ prompt: "a red sneaker", signal })) {
 *   show(step.preview, step.row / step.rows);
 *   if (step.row === step.rows) show((await step.result()).images);
 * }
 * ```
 *
 * Nothing here imports anything of Node or of the browser. Names are those of the Python package, in camelCase; what is
 * in a manifest, in a plan or in the metadata of a picture keeps the names of docs/bundle.md.
 *
 * Shapes: B images in a batch, C H W the shape of one sample (of pixels or of latents).
 */

/** A file that a manifest names: a plain name in the bundle's folder, its size in bytes, its SHA-256 in hexadecimal. */
export interface FileEntry {
  readonly file: string;
  readonly size: number;
  readonly sha256: string;
}

export interface ReadOptions {
  /** Bytes of the file where the manifest says so: another number is an error, and may be one before all is read. */
  readonly size?: number | undefined;
  /** The most bytes it may have; the same as `size` where there is one. A longer one must not be read to its end. */
  readonly maxSize: number;
  /** SHA-256 where the manifest says one: a key for a cache. Whoever implements `Files` need not check it. */
  readonly sha256?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  /** To be called with the bytes of this file read so far, as often as is convenient, or never. */
  readonly onProgress?: ((loaded: number) => void) | undefined;
}

/**
 * Where a bundle's files come from: a folder (`folderFiles` in node-files.mjs), a server, a cache. What is read is not
 * believed: sizes and hashes are compared with the manifest's afterwards. A file that cannot be had is a rejection with
 * a `BundleError`, or with any error whose message is a line for people.
 */
export interface Files {
  /** What messages call the bundle, such as its folder or its address. */
  readonly name?: string | undefined;
  /** The bytes of `manifest.json`. */
  manifest(options: ReadOptions): Promise<Uint8Array>;
  /** The bytes of another file, by its plain name. */
  read(name: string, options: ReadOptions): Promise<Uint8Array>;
  /**
   * Where a file lies on this machine. With it the engine opens graphs whose weights are files of their own, or which
   * are larger than 64 MiB, and nobody but the engine holds the weights. So this has to check what it gives away: it
   * resolves only for a plain file, no link, of the entry's size and SHA-256.
   */
  path?(entry: FileEntry, options: ReadOptions): Promise<string>;
}

/** `onnxruntime-node`, `onnxruntime-web`, or another package with the interface of `onnxruntime-common`. */
export interface OnnxRuntime {
  readonly InferenceSession: { create(model: any, options?: any): Promise<any> };
  readonly Tensor: new (type: any, data: any, dims: readonly number[]) => any;
  readonly env: any;
}

/** The class `Tokenizer` of `@huggingface/tokenizers`. */
export type TokenizerClass = new (tokenizer: any, config: any) => any;

export interface LoadProgress {
  /** "read": bytes arrive; "open": a graph is being opened by the engine; "ready": all is there. */
  readonly stage: "read" | "open" | "ready";
  /** The file that this is about; empty when all is there. */
  readonly file: string;
  /** Bytes of all files that are read so far, and of all files that have to be. */
  readonly loaded: number;
  readonly total: number;
}

export interface LoadOptions {
  /**
   * As ONNX Runtime names them ("cpu", "wasm", "webgpu", "cuda" ...), best first. Without it: the engine's own choice.
   */
  readonly executionProviders?: readonly (string | { readonly name: string })[] | undefined;
  /** Threads inside an operator. In a browser this can be said once, before the first graph is opened. */
  readonly threads?: number | undefined;
  /** Which of a role's graphs, such as "fp16", where it has several; without it float32, as made for the provider. */
  readonly variant?: string | undefined;
  /** Bundles of text need it, those of classes do not. */
  readonly tokenizer?: TokenizerClass | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
}

/**
 * Read, check and open a bundle.
 *
 * @throws {BundleError} it is missing, damaged, from the future, or not a bundle.
 * @throws {EngineError} ONNX Runtime cannot run it where it was asked to.
 * @throws {RequestError} an option is out of range.
 * @throws the signal's reason, where it was aborted.
 */
export function load(files: Files, ort: OnnxRuntime, options?: LoadOptions): Promise<Pipeline>;

/**
 * What a picture is asked to be. Unknown keys are refused; `undefined` is the default everywhere.
 *
 * Of a model of text `prompt` has to be there, of a model of classes `classLabels`; the other is refused.
 */
export interface PictureRequest {
  /** One prompt or several. It may say `(word:1.3)`, `[word]` and `BREAK`, see docs/prompts.md. */
  readonly prompt?: string | readonly string[] | undefined;
  /** What guidance leads away from; one for all, or one for each prompt. The default is the empty prompt. */
  readonly negativePrompt?: string | readonly string[] | undefined;
  /** Images of each prompt, which follow each other; the default is 1. */
  readonly numImagesPerPrompt?: number | undefined;
  /** Last layers of the text encoder to leave out; the default is the manifest's. */
  readonly clipSkip?: number | undefined;
  /**
   * One label or several: 0 .. num_classes - 1, or num_classes for none. `manifest.conditioning.names` has their names.
   */
  readonly classLabels?: number | readonly number[] | undefined;
  /** Which of the manifest's samplers; the default is `manifest.defaults.sampler`. */
  readonly sampler?: string | undefined;
  /**
   * With the sampler it names a plan of the manifest, `SAMPLER-STEPS`; what is not there is refused by a line that
   * lists them.
   */
  readonly numInferenceSteps?: number | undefined;
  /** Instead of both: a plan of the manifest by its name, or one that `readPlan` has read. */
  readonly plan?: string | Plan | undefined;
  /** s in uncond + s * (cond - uncond); 1 is off and halves the work. The default is the manifest's. */
  readonly guidanceScale?: number | undefined;
  /** 0 .. 2^64 - 1, of the first image; image k has seed + k. Without it one below 2^32 is drawn. */
  readonly seed?: bigint | number | undefined;
  /** The default is "philox". */
  readonly rng?: "philox" | "torch" | undefined;
  /**
   * Pixels. Models of text take multiples of `latents.factor`, those of classes but their own size, which is the
   * default.
   */
  readonly width?: number | undefined;
  readonly height?: number | undefined;
  /** Images evaluated together, by default 1 of text and 32 of classes. It changes time and memory, never a picture. */
  readonly batchSize?: number | undefined;
  /**
   * Stops between two evaluations of a network; what is thrown is the signal's reason. The pipeline can be used again.
   */
  readonly signal?: AbortSignal | undefined;
  /** Called after each row with the rows done and the rows in all. */
  readonly onProgress?: ((row: number, rows: number) => void) | undefined;
}

/** Row by row, `channels` bytes for each pixel: red, green and blue, or grey. */
export interface Image {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
  readonly channels: 1 | 3;
}

/** Numbers in C order. */
export interface FloatTensor {
  readonly data: Float32Array;
  readonly dims: readonly number[];
}

/**
 * What made a picture, as JSON values by the names that Python writes: `bundle`, `bundle_sha256`, `sampler`,
 * `num_inference_steps`, `options`, `guidance_scale`, `rng`, `seed` (a bigint), `prompt` or `class_label` ...
 * `plan_sha256` is there for a plan that was given. `recipeText` (recipe.mjs) turns it into the text that `python -m
 * runtime replay` reads.
 */
export type Recipe = Readonly<Record<string, unknown>>;

export interface Picture extends Image {
  readonly seed: bigint;
  readonly recipe: Recipe;
}

export interface Result {
  readonly images: readonly Picture[];
  /** The last x: pixels before rounding (B, C, H, W), or latents (B, C, h, w). */
  readonly sample: FloatTensor;
  /** What made them, as far as it does not differ from image to image. */
  readonly recipe: Recipe;
  /** What is not read of a prompt, not done here, or a word that the model was not trained with: a line each. */
  readonly warnings: readonly string[];
}

/** What there is after a row of the plan. A request of several batches walks the plan for each. */
export interface Step {
  /** Rows done, 1 .. rows. */
  readonly row: number;
  /** Rows of the whole request. */
  readonly rows: number;
  /** Which of the request's images the tensors are about. */
  readonly images: readonly number[];
  /**
   * x after this row, (B, C, h, w) of latents or (B, C, H, W) of pixels. It is the loop's own: look, and do not write.
   */
  readonly sample: FloatTensor;
  /** What the network takes the finished sample to be, of the same shape. */
  readonly predOriginalSample: FloatTensor;
  /**
   * What the pictures are going to be, as far as can be told, made when it is asked for: pixels, or for latents a pixel
   * for each by the manifest's `latents.preview`. Null where the manifest has none.
   */
  readonly preview: readonly Image[] | null;
  /** As `Result.warnings`; they are known before the first row. */
  readonly warnings: readonly string[];
  /**
   * The finished pictures, as a call returns them; they are decoded once, however often they are asked for.
   *
   * @throws {RequestError} this is not the last step, or a network's numbers are no longer finite.
   */
  result(): Promise<Result>;
}

export interface Pipeline {
  /**
   * Draw.
   *
   * @throws {RequestError} an argument is out of range, and nothing has been computed; or a network's numbers are no
   *   longer finite.
   * @throws the signal's reason, where it was aborted.
   */
  (request: PictureRequest): Promise<Result>;
  /**
   * Draw step by step; who wants no more stops asking. What a call draws is `result()` of the last step, to the bit.
   * Arguments are checked at once, before the first step is asked for.
   */
  denoise(request: PictureRequest): AsyncGenerator<Step, void, void>;
  /** The checked manifest, by the names of docs/bundle.md. */
  readonly manifest: Manifest;
  /** SHA-256 of manifest.json, by which a picture's recipe knows the bundle. */
  readonly bundleSha256: string;
  /** The plan that a request would take, which says how many rows there will be: `plan.timesteps.length`. */
  plan(request?: Pick<PictureRequest, "sampler" | "numInferenceSteps" | "plan">): Plan;
  /** Give the engine's memory back; the pipeline cannot be used any more. */
  dispose(): Promise<void>;
}

/** What a network is trained to tell of a noisy sample. */
export type PredictionType = "epsilon" | "v_prediction" | "sample";

/** A manifest, by the names of docs/bundle.md. `plans` are as in the file; `Pipeline.plan` gives them checked. */
export interface Manifest {
  readonly format_version: 1;
  readonly name: string;
  readonly family: "class-conditional-ddpm" | "stable-diffusion-1";
  readonly provenance: {
    readonly source: string;
    readonly sha256: string;
    readonly licence: string;
    readonly training: Readonly<Record<string, unknown>> | null;
    readonly exporter: Readonly<Record<string, unknown>>;
  };
  readonly graphs: Readonly<Record<string, Readonly<Record<string, GraphEntry>>>>;
  readonly noise_schedule: {
    readonly num_train_timesteps: number;
    readonly alphas_cumprod: readonly number[];
    readonly betas: Readonly<Record<string, unknown>>;
    readonly prediction_type: PredictionType;
    readonly final_alpha_cumprod: number;
    readonly timestep_spacing: "leading" | "trailing" | "linspace";
    readonly steps_offset: number;
  };
  readonly pixels: { readonly channels: 1 | 3; readonly height: number; readonly width: number } | null;
  readonly latents: {
    readonly channels: number;
    readonly factor: number;
    readonly scaling_factor: number;
    readonly preview?: { readonly weights: readonly (readonly number[])[]; readonly biases: readonly number[] } | null;
  } | null;
  readonly unet_input: readonly {
    readonly name: "sample" | "mask" | "masked_sample";
    readonly channels: number;
  }[];
  readonly conditioning: ClassConditioning | TextConditioning;
  readonly defaults: {
    readonly sampler: string;
    readonly num_inference_steps: number;
    readonly guidance_scale: number;
    readonly width: number;
    readonly height: number;
  };
  readonly plans: Readonly<Record<string, PlanFields>>;
}

export interface ClassConditioning {
  readonly kind: "class";
  readonly num_classes: number;
  readonly null_class: number;
  readonly names: readonly string[];
}

export interface TextConditioning {
  readonly kind: "text";
  readonly tokenizer: FileEntry;
  readonly max_length: number;
  readonly bos_token_id: number;
  readonly eos_token_id: number;
  readonly pad_token_id: number;
  readonly vocab_size: number;
  readonly embedding_dim: number;
  readonly num_hidden_layers: number;
  readonly clip_skip: number;
  /** Every word that a model of a small world was trained with, or null. */
  readonly known_words: readonly string[] | null;
}

export interface TensorEntry {
  readonly name: string;
  readonly dtype: "float32" | "float16" | "int64" | "int32";
  readonly shape: readonly (number | string)[];
}

export interface GraphEntry extends FileEntry {
  readonly external_data: readonly FileEntry[];
  readonly inputs: readonly TensorEntry[];
  readonly outputs: readonly TensorEntry[];
  readonly providers: readonly string[];
  readonly opset: number;
  readonly parity: Readonly<Record<string, unknown>>;
  readonly initializers: Readonly<Record<string, { readonly name: string; readonly transposed: boolean }>>;
}

/** A plan as JSON has it: docs/bundle.md, section "A plan". */
export interface PlanFields {
  readonly sampler: string;
  readonly num_inference_steps: number;
  readonly options: Readonly<Record<string, unknown>>;
  readonly prediction_type: PredictionType;
  readonly initial_scale: number;
  readonly signal_scales: readonly number[];
  readonly noise_scales: readonly number[];
  readonly timesteps: readonly number[];
  readonly guidance: readonly number[];
  readonly weights: readonly (readonly number[])[];
  readonly x0_weights: readonly (readonly number[])[];
  readonly clip_sample: number | null;
  readonly guidance_rescale: number;
}

/** A plan that was checked. */
export interface Plan extends PlanFields {
  /** SHA-256 of the file that `readPlan` read it from; null for a plan of a manifest. */
  readonly sha256: string | null;
}

/**
 * Read a plan that `python -m runtime plan --json -o FILE` wrote: the bytes or the text of that file.
 *
 * @throws {RequestError} it is no plan, with what is wrong. Whether it fits a model is found when that is to draw with
 *   it.
 */
export function readPlan(file: Uint8Array | string): Promise<Plan>;

/** Base of all errors that a caller can mend. Each message is one line: what is wrong, what is allowed, what to do. */
export class DiffusionError extends Error {
  constructor(message: string, options?: ErrorOptions);
}

/** A bundle is missing, damaged, from the future, or not a bundle. */
export class BundleError extends DiffusionError {}

/** ONNX Runtime cannot run where it was asked to. */
export class EngineError extends DiffusionError {}

/** An argument is out of range or does not fit the model. */
export class RequestError extends DiffusionError {}
