/** Plans, read and held against the model they are to draw with: runtime/plan.py and runtime/model_plan.py. */

import { RequestError, kindOf, oneLine } from "./errors.mjs";
import { checkWhole, isFiniteNumber, shown } from "./limits.mjs";
import { sha256 } from "./sha256.mjs";

export const PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"];
export const PLAN_TENSORS = ["signal_scales", "noise_scales", "timesteps", "guidance", "weights", "x0_weights"];

const KEYS = [
  ...["sampler", "num_inference_steps", "options", "prediction_type", "initial_scale"],
  ...PLAN_TENSORS,
  ...["clip_sample", "guidance_rescale"],
];
const COLUMNS = 9; // four samples, four outputs, one noise
const OUTPUT = 4; // the first of the outputs
export const MAX_PLAN_BYTES = 64 * 2 ** 20;
// Sigma is infinite where no signal is left; the model's own table ends here (sigma = 4096) instead.
const LEAST_ALPHA_CUMPROD = 2 ** -24;
// Some samplers round the timestep they tell or cut its fraction off, which moves it by less than one.
const MAX_TIMESTEP_ERROR = 1 + 1e-6;

/** A plan that was checked, by the names of docs/bundle.md, section "A plan". */
export class Plan {
  /**
   * @param value what JSON has.
   * @param fileSha256 of the file it was read from, where it was given by itself.
   */
  constructor(value, fileSha256 = null) {
    checkFields(value);
    Object.assign(this, value);
    this.sha256 = fileSha256;
    Object.freeze(this);
  }
}

/** Read the file that `python -m runtime plan --json -o FILE` wrote. */
export async function readPlan(file) {
  const bytes = typeof file === "string" ? new TextEncoder().encode(file) : file;
  if (!(bytes instanceof Uint8Array))
    throw new RequestError(`a plan is read from bytes or text, not from ${kindOf(file)}`);
  if (bytes.length > MAX_PLAN_BYTES)
    throw new RequestError(`the plan has ${bytes.length} bytes; at most ${MAX_PLAN_BYTES} are read`);
  let value;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new RequestError(`the plan is not JSON (${oneLine(error)})`);
  }
  return new Plan(value, await sha256(bytes));
}

/** Refuse what is no plan. */
function checkFields(plan) {
  if (plan === null || typeof plan !== "object" || Array.isArray(plan)) {
    throw new RequestError(`a plan is a JSON object, not ${kindOf(plan)}`);
  }
  const missing = KEYS.filter((key) => !Object.hasOwn(plan, key));
  const unknown = Object.keys(plan).filter((key) => !KEYS.includes(key));
  if (missing.length || unknown.length) {
    throw new RequestError(
      `the plan lacks [${missing.join(", ")}] and has unknown keys [${unknown.map(shown).join(", ")}]`,
    );
  }
  const rows = Array.isArray(plan.timesteps) ? plan.timesteps.length : 0;
  if (!rows) throw new RequestError("the plan has no rows; timesteps must be a list of at least one number");
  checkNumbers("signal_scales", plan.signal_scales, rows + 1);
  checkNumbers("noise_scales", plan.noise_scales, rows + 1);
  checkNumbers("timesteps", plan.timesteps, rows);
  checkNumbers("guidance", plan.guidance, rows);
  checkTable("weights", plan.weights, rows, COLUMNS);
  checkTable("x0_weights", plan.x0_weights, rows, 2);
  checkFacts(plan);
  checkTables(plan);
}

function checkNumbers(name, value, count) {
  if (!Array.isArray(value) || value.length !== count || !value.every(isFiniteNumber)) {
    throw new RequestError(`the plan's ${name} must be finite numbers of shape (${count})`);
  }
}

function checkTable(name, value, rows, columns) {
  const fits = (row) => Array.isArray(row) && row.length === columns && row.every(isFiniteNumber);
  if (!Array.isArray(value) || value.length !== rows || !value.every(fits)) {
    throw new RequestError(`the plan's ${name} must be finite numbers of shape (${rows}, ${columns})`);
  }
}

function checkFacts(plan) {
  if (
    typeof plan.sampler !== "string" ||
    plan.options === null ||
    typeof plan.options !== "object" ||
    Array.isArray(plan.options)
  ) {
    throw new RequestError("the plan's sampler must be a string, and its options an object");
  }
  if (!PREDICTION_TYPES.includes(plan.prediction_type)) {
    throw new RequestError(
      `prediction_type ${shown(plan.prediction_type)} is unknown; it is one of ${PREDICTION_TYPES.join(", ")}`,
    );
  }
  if (!isFiniteNumber(plan.initial_scale)) {
    throw new RequestError(`the plan's initial_scale is ${shown(plan.initial_scale)}; it must be a finite number`);
  }
  checkWhole("the plan's num_inference_steps", plan.num_inference_steps, 1);
  if (!isFiniteNumber(plan.guidance_rescale) || plan.guidance_rescale < 0 || plan.guidance_rescale > 1) {
    throw new RequestError(
      `the plan's guidance_rescale is ${shown(plan.guidance_rescale)}; it must be a number from 0 to 1`,
    );
  }
  if (plan.clip_sample !== null && (!isFiniteNumber(plan.clip_sample) || plan.clip_sample <= 0)) {
    throw new RequestError(
      `the plan's clip_sample is ${shown(plan.clip_sample)}; it must be a number above 0, or null`,
    );
  }
}

/** What tables of the right shapes can still have wrong. */
function checkTables(plan) {
  if (plan.guidance.some((share) => share < 0 || share > 1))
    throw new RequestError("the plan's guidance must lie in [0, 1]");
  if (plan.signal_scales.some((signal, i) => Math.abs(signal ** 2 + plan.noise_scales[i] ** 2 - 1) > 1e-6)) {
    throw new RequestError("the squares of the plan's signal_scales and noise_scales must sum to one");
  }
  plan.weights.slice(0, OUTPUT - 1).forEach((row, i) => {
    const tooEarly = [...row.slice(i + 1, OUTPUT), ...row.slice(OUTPUT + i + 1, 2 * OUTPUT)];
    if (tooEarly.some((weight) => weight !== 0)) {
      throw new RequestError(`row ${i} of the plan's weights uses samples or outputs from before its first row`);
    }
  });
  if (plan.clip_sample !== null && plan.x0_weights.some((row) => row[1] === 0)) {
    throw new RequestError("the plan has clip_sample, but a row whose x0_weights make nothing of the output");
  }
}

/** Refuse a plan that was made for another model, or that begins at an image: this host begins at noise. */
export function checkPlan(manifest, plan) {
  const { name, noise_schedule: schedule } = manifest;
  const strength = plan.options.strength ?? 1;
  if (strength !== 1)
    throw new RequestError(`the plan begins at an image (strength ${shown(strength)}), and there is none`);
  if (plan.prediction_type !== schedule.prediction_type) {
    throw new RequestError(
      `the plan is for ${plan.prediction_type} models; ${name} predicts ${schedule.prediction_type}`,
    );
  }
  const last = schedule.num_train_timesteps - 1;
  const outside = plan.timesteps.find((timestep) => timestep < 0 || timestep > last);
  if (outside !== undefined) {
    throw new RequestError(
      `the plan has timestep ${outside}, but ${name} has 0 to ${last}; the plan was made for another model`,
    );
  }
  checkLevels(manifest, plan);
}

/** Refuse a plan whose rows have another noise than the network was trained with at their timesteps. */
function checkLevels({ name, noise_schedule: schedule }, plan) {
  const rescaled = plan.options.rescale_betas_zero_snr === true;
  const alphasCumprod = rescaled ? rescaleZeroTerminalSnr(schedule.alphas_cumprod) : schedule.alphas_cumprod;
  const logSigmas = alphasCumprod.map((alpha) => {
    const kept = Math.max(alpha, LEAST_ALPHA_CUMPROD);
    return Math.log(Math.sqrt((1 - kept) / kept));
  });
  plan.timesteps.forEach((timestep, i) => {
    const sigma = Math.abs(plan.noise_scales[i]) / Math.abs(plan.signal_scales[i]);
    const expected = timestepAt(Math.log(sigma), logSigmas);
    if (!(Math.abs(expected - timestep) <= MAX_TIMESTEP_ERROR)) {
      throw new RequestError(
        `row ${i} of the plan tells timestep ${timestep} at sigma ${sigma.toPrecision(4)}, which ${name} has at ` +
          `timestep ${expected.toPrecision(4)}; the plan was made for another model`,
      );
    }
  });
}

/** The fractional timestep of a noise level, log-linear in sigma and kept within the training timesteps. */
function timestepAt(logSigma, logSigmas) {
  const above = logSigmas.findIndex((each) => each >= logSigma);
  if (above === -1) return logSigmas.length - 1;
  if (above === 0) return 0;
  const [low, high] = [logSigmas[above - 1], logSigmas[above]];
  return above - 1 + (logSigma - low) / (high - low);
}

/** No signal left at the last timestep: the root of each shifted and stretched (Lin et al. 2024, algorithm 1). */
function rescaleZeroTerminalSnr(alphasCumprod) {
  const scales = alphasCumprod.map(Math.sqrt);
  const [first, last] = [scales[0], scales.at(-1)];
  return scales.map((scale) => (((scale - last) * first) / (first - last)) ** 2);
}
