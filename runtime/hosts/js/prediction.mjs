/** What the U-Net says of a sample, led away from what it says without the condition: runtime/prediction.py. */

import { guided } from "./arithmetic.mjs";
import { concatenated, product, rows, tensor } from "./tensor.mjs";

/**
 * The guided output of the network for x, of a batch (Ho & Salimans 2022, eq. 6, with s = w + 1).
 *
 * @param unet the network.
 * @param sample x, (B, C, H, W).
 * @param timestep of the row.
 * @param conditioning `{ cond, uncond }`: the network's other inputs by name, B rows each.
 * @param scale s in uncond + s * (cond - uncond); at 1 the network is asked once.
 * @param plan says how the result is rescaled.
 */
export async function predict(unet, sample, timestep, { cond, uncond }, scale, plan) {
  if (scale === 1) return (await evaluate(unet, sample, timestep, cond)).data;
  const told = Object.keys(cond).map((name) => [name, concatenated([uncond[name], cond[name]])]);
  const outputs = await evaluate(unet, concatenated([sample, sample]), timestep, Object.fromEntries(told));
  const count = sample.dims[0];
  const [u, c] = [rows(outputs, 0, count).data, rows(outputs, count, count).data];
  return guided(u, c, scale, plan.guidance_rescale, product(sample.dims.slice(1)));
}

/** One run of the U-Net. */
async function evaluate(unet, sample, timestep, conditions) {
  const count = sample.dims[0];
  const told = tensor(new Float32Array(count).fill(timestep), [count]);
  return (await unet.run({ sample, timestep: told, ...conditions })).out_sample;
}

/** What some of the images are told, `count` of them from `begin` on. */
export function conditioningOf({ cond, uncond }, begin, count) {
  const part = (inputs) =>
    Object.fromEntries(Object.entries(inputs).map(([name, all]) => [name, rows(all, begin, count)]));
  return { cond: part(cond), uncond: part(uncond) };
}
