/**
 * The sampling loop, which knows nothing of texts or classes: runtime/pipeline.py, with the same names in the same
 * order. docs/bundle.md is the contract, diffuse.d.ts says what each export takes and gives.
 *
 * Shapes: B images in a batch, C H W the shape of one sample (of pixels or of latents), N rows of the plan.
 *
 * `Pipeline.walk` is the loop, nothing more; text-to-image.mjs and class-to-image.mjs prepare its arguments. A pipeline
 * holds no state between calls but the graphs it has loaded.
 */

import { clipOriginal, combine, firstSample } from "./arithmetic.mjs";
import { filesOf, openBundle } from "./bundle.mjs";
import { ClassToImage } from "./class-to-image.mjs";
import { BundleError, RequestError } from "./errors.mjs";
import { checkKeys, checkWhole, imageSeed, isFiniteNumber, shown } from "./limits.mjs";
import { GENERATORS, drawEach, noiseGenerator } from "./noise.mjs";
import { Plan, checkPlan } from "./plan.mjs";
import { conditioningOf, predict } from "./prediction.mjs";
import { PromptTokenizer } from "./prompt.mjs";
import { Networks } from "./session.mjs";
import { steps } from "./steps.mjs";
import { imageOf, product, tensor } from "./tensor.mjs";
import { TextToImage } from "./text-to-image.mjs";
import { turn } from "./turn.mjs";
import { VERSION } from "./version.mjs";

export { BundleError, DiffusionError, EngineError, RequestError } from "./errors.mjs";
export { readPlan } from "./plan.mjs";

const HISTORY = 4; // samples and outputs that a row may look back on, its own included
const LOAD_OPTIONS = ["executionProviders", "threads", "variant", "tokenizer", "signal", "onProgress"];
const SETTINGS = [
  "sampler",
  "numInferenceSteps",
  "plan",
  "guidanceScale",
  "seed",
  "rng",
  "width",
  "height",
  "batchSize",
];

export async function load(files, ort, options = {}) {
  checkKeys(options, LOAD_OPTIONS, "load");
  const { tokenizer, signal, onProgress, ...where } = options;
  const bundle = await openBundle(files, { signal });
  const networks = new Networks(bundle, ort, where);
  let pipeline;
  try {
    pipeline = await makePipeline(bundle, networks, tokenizer, { signal, onProgress });
  } catch (error) {
    await networks.release(); // those that were there already
    throw error;
  }
  // A function that draws, and has all that the pipeline has.
  return Object.setPrototypeOf((request) => pipeline.draw(request), pipeline);
}

/** The pipeline for what the model is told, with all files read and all graphs opened that drawing takes. */
export async function makePipeline(bundle, networks, Tokenizer, { signal, onProgress } = {}) {
  const { manifest } = bundle;
  if (manifest.unet_input.length > 1) {
    throw new BundleError(`${manifest.name} fills in parts of pictures, which this host does not do`);
  }
  const isText = manifest.conditioning.kind === "text";
  const { roles } = isText ? TextToImage : ClassToImage;
  const graphs = roles.flatMap((role) => filesOf(networks.graph(role)));
  const watch = onProgress && watcher(isText ? [manifest.conditioning.tokenizer, ...graphs] : graphs, onProgress);
  const promptTokenizer = isText ? await PromptTokenizer.open(bundle, Tokenizer, { signal, watch }) : null;
  for (const role of roles) await networks.session(role, { signal, watch });
  watch?.("ready", "");
  const model = isText ? new TextToImage(manifest, networks, promptTokenizer) : new ClassToImage(manifest);
  return new Pipeline(bundle, networks, model);
}

/** Tells of all files together what each tells of itself. */
function watcher(entries, onProgress) {
  const loaded = new Map(entries.map(({ file }) => [file, 0]));
  const sum = (numbers) => [...numbers].reduce((total, each) => total + each, 0);
  const total = sum(new Map(entries.map(({ file, size }) => [file, size])).values());
  return (stage, file, bytes) => {
    if (stage === "read") loaded.set(file, bytes);
    onProgress({ stage, file, loaded: sum(loaded.values()), total });
  };
}

/** A bundle ready to draw; `load` makes it. */
class Pipeline {
  /**
   * @param bundle the checked bundle.
   * @param networks its graphs.
   * @param model a `TextToImage` or `ClassToImage`.
   */
  constructor(bundle, networks, model) {
    Object.assign(this, { bundle, networks, model, manifest: bundle.manifest, bundleSha256: bundle.sha256 });
  }

  async draw(request) {
    let last;
    for await (const step of this.denoise(request)) last = step;
    return last.result();
  }

  denoise(given) {
    const request = this.request(given);
    return steps(this.drawing(request), request.warnings, (sample) => this.model.preview(sample), request.onProgress);
  }

  /** What a call asks for, with every default filled in, and checked; nothing is computed. */
  request(given) {
    const { takes } = this.model.constructor;
    checkKeys(given, [...takes, ...SETTINGS, "signal", "onProgress"], `a request to ${this.manifest.name}`);
    const { signal, onProgress } = given;
    const { conditions, shape, chosen } = this.model.request(given);
    const settings = this.settings(given);
    const recipe = Object.freeze({ ...this.metadata(settings), ...chosen });
    const seeds = conditions.map((_, k) => imageSeed(settings.seed, k));
    return { ...settings, conditions, seeds, shape, recipe, warnings: [], signal, onProgress };
  }

  /** Draw an image for each of the conditions and of the seeds, row by row. */
  async *drawing(request) {
    const { conditions, seeds, recipe, warnings, signal } = request;
    const groups = await this.model.encode(request);
    const sample = yield* this.sample(groups, request);
    const images = await this.model.decode(sample, signal);
    const pictures = images.map((image, k) => {
      return { ...image, seed: seeds[k], recipe: Object.freeze({ ...recipe, seed: seeds[k], ...conditions[k] }) };
    });
    return { images: pictures, sample, recipe, warnings: [...warnings] };
  }

  /** The plan that a request takes, held against the model. */
  plan({ sampler, numInferenceSteps, plan } = {}) {
    const { name, defaults } = this.manifest;
    if (plan !== undefined && (sampler !== undefined || numInferenceSteps !== undefined)) {
      throw new RequestError("give either a plan or sampler and numInferenceSteps, and not both");
    }
    if (plan !== undefined && typeof plan !== "string" && !(plan instanceof Plan)) {
      throw new RequestError(
        `plan is ${shown(plan)}; it must be the name of one of ${name}'s, or what readPlan has read`,
      );
    }
    if (numInferenceSteps !== undefined) checkWhole("numInferenceSteps", numInferenceSteps, 1);
    const wanted = plan ?? `${sampler ?? defaults.sampler}-${numInferenceSteps ?? defaults.num_inference_steps}`;
    const found = wanted instanceof Plan ? wanted : this.bundle.plans.get(wanted);
    if (!found) {
      throw new RequestError(
        `${name} has no plan ${shown(wanted)}; it has ${[...this.bundle.plans.keys()].join(", ")}; others are made by ` +
          "python -m runtime plan --json -o FILE, and given as a plan",
      );
    }
    checkPlan(this.manifest, found);
    return found;
  }

  /** Fill in the defaults of a request, and check it. */
  settings({ guidanceScale, seed, rng = "philox", batchSize, sampler, numInferenceSteps, plan }) {
    const guidance = guidanceScale ?? this.manifest.defaults.guidance_scale;
    if (!isFiniteNumber(guidance)) {
      throw new RequestError(`guidanceScale is ${shown(guidance)}; it must be a finite number (1 is off)`);
    }
    if (!Object.hasOwn(GENERATORS, rng)) {
      throw new RequestError(`rng ${shown(rng)} is unknown; choose ${Object.keys(GENERATORS).join(" or ")}`);
    }
    return {
      plan: this.plan({ sampler, numInferenceSteps, plan }),
      guidanceScale: guidance,
      seed: imageSeed(seed ?? crypto.getRandomValues(new Uint32Array(1))[0]),
      rng,
      batchSize: checkWhole("batchSize", batchSize ?? this.model.defaultBatchSize, 1),
    };
  }

  /** The last x of each image, (images, C, H, W), drawn in batches. */
  async *sample(groups, request) {
    const { plan, batchSize, seeds, shape } = request;
    const size = product(shape);
    const sample = tensor(new Float32Array(seeds.length * size), [seeds.length, ...shape]);
    const batches = groups.reduce((sum, { images }) => sum + Math.ceil(images.length / batchSize), 0);
    const rows = plan.timesteps.length * batches;
    let done = 0;
    for (const group of groups) {
      for (let begin = 0; begin < group.images.length; begin += batchSize) {
        const images = group.images.slice(begin, begin + batchSize);
        const conditioning = conditioningOf(group, begin, images.length);
        let last;
        for await (const row of this.walk(
          conditioning,
          images.map((k) => seeds[k]),
          request,
        )) {
          last = row.sample.data;
          yield { row: ++done, rows, images, ...row };
        }
        images.forEach((k, i) => sample.data.set(imageOf(last, i, size), k * size));
      }
    }
    return sample;
  }

  /**
   * Walk the plan for one batch, yielding after every row; to stop, stop asking.
   *
   * @param conditioning the U-Net's other inputs, B rows.
   * @param seeds one for each image, (B,).
   * @param request of which this takes the compiled sampler, s in uncond + s * (cond - uncond), the kind of noise, and
   *   the shape of one sample, (C, H, W).
   */
  async *walk(conditioning, seeds, { plan, guidanceScale, rng, shape, signal }) {
    const unet = await this.networks.session("unet");
    const generators = seeds.map((seed) => noiseGenerator(rng, seed));
    const [size, dims] = [product(shape), [seeds.length, ...shape]];
    const [samples, outputs] = [[], []]; // the newest first
    remember(samples, firstSample(plan, drawEach(generators, size)));
    for (let i = 0; i < plan.timesteps.length; i++) {
      await turn(signal);
      const scale = 1 + plan.guidance[i] * (guidanceScale - 1);
      let output = await predict(unet, tensor(samples[0], dims), plan.timesteps[i], conditioning, scale, plan);
      let predOriginal = combine(plan.x0_weights[i], [samples[0], output]);
      if (plan.clip_sample !== null) {
        [output, predOriginal] = clipOriginal(plan.x0_weights[i], samples[0], output, plan.clip_sample);
      }
      remember(outputs, output);
      const noise = plan.weights[i].at(-1) !== 0 ? drawEach(generators, size) : null;
      const following = combine(plan.weights[i], [...padded(samples), ...padded(outputs), noise]);
      if (!following.every(Number.isFinite)) {
        const remedy = this.networks.wider("unet") || `guidanceScale ${guidanceScale} is too large`;
        throw new RequestError(`row ${i + 1} of ${plan.timesteps.length} is no longer finite; ${remedy}`);
      }
      remember(samples, following);
      yield { sample: tensor(following, dims), predOriginalSample: tensor(predOriginal, dims) };
    }
  }

  /** What made pictures, as far as it does not differ between them. */
  metadata({ plan, guidanceScale, rng }) {
    return {
      ...(plan.sha256 === null ? {} : { plan_sha256: plan.sha256 }),
      bundle: this.manifest.name,
      bundle_sha256: this.bundleSha256,
      variant: this.networks.variant ?? this.networks.variantOf("unet"),
      low_memory: false,
      sampler: plan.sampler,
      num_inference_steps: plan.num_inference_steps,
      options: plan.options,
      guidance_scale: guidanceScale,
      rng,
      provider: this.networks.provider,
      onnxruntime: this.networks.engineVersion,
      version: VERSION,
    };
  }

  async dispose() {
    await this.networks.release();
  }
}

/** Keep the newest, in front. */
function remember(history, newest) {
  history.unshift(newest);
  history.length = Math.min(history.length, HISTORY);
}

/** The last four, newest first; null for those that do not exist yet. */
function padded(history) {
  return [...history, ...new Array(HISTORY - history.length).fill(null)];
}
