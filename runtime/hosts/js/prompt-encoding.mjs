/**
 * From prompts to what the U-Net is told of them: runtime/prompt_encoding.py and runtime/text_encoder.py.
 *
 * Shapes: B images, L tokens, D width of the text embeddings.
 */

import { concatenated, tensor } from "./tensor.mjs";
import { turn } from "./turn.mjs";

const LEAST_MEAN = 0.01; // of the root mean square: means below are not restored

/**
 * What the U-Net is told of prompts and their negatives: encoder_hidden_states (B, L, D).
 *
 * Of an image's prompts the shorter are followed by chunks of the empty one; without guidance the negative one is not
 * looked at. Images with the same L are one group, so that what an image is told does not depend on others.
 *
 * @param encode from a text to its states `{ data, dims }`, (1, l, D).
 * @param conditions `{ prompt, negative_prompt }` of every image.
 * @param guided whether guidance leads away from the negative prompts.
 * @returns a list of `{ images, cond, uncond }`: their places in the request, and the U-Net's inputs, by name.
 */
export async function encodePrompts(encode, conditions, guided) {
  const said = conditions.map(({ prompt, negative_prompt: negative }) => (guided ? [prompt, negative] : [prompt]));
  const encoded = new Map();
  for (const text of new Set(said.flat())) encoded.set(text, await encode(text));
  const lengthOf = (text) => encoded.get(text).dims[1];
  if (new Set([...encoded.keys()].map(lengthOf)).size > 1 && !encoded.has("")) encoded.set("", await encode(""));
  const groups = new Map();
  said.forEach((own, k) => {
    const length = Math.max(...own.map(lengthOf));
    groups.set(length, [...(groups.get(length) ?? []), k]);
  });
  const told = (images, which, length) => ({
    encoder_hidden_states: concatenated(
      images.map((k) => followedBy(encoded.get(said[k].at(which)), encoded.get(""), length)),
    ),
  });
  return [...groups].map(([length, images]) => ({
    images,
    cond: told(images, 0, length),
    uncond: told(images, -1, length),
  }));
}

/**
 * Chunks of a prompt as encoder_hidden_states, (1, chunks * max_length, D), each read by itself.
 *
 * @param encoder session of the text encoder.
 * @param chunks as `PromptTokenizer.chunks` makes them.
 * @param clipSkip last layers of the encoder to leave out.
 * @param dim D.
 */
export async function encodeChunks(encoder, chunks, clipSkip, dim, signal) {
  const read = [];
  for (const { ids, weights } of chunks) {
    if (signal) await turn(signal); // of a long prompt there are hundreds
    const { last_hidden_state: states } = await encoder.run({
      input_ids: tensor(BigInt64Array.from(ids, BigInt), [1, ids.length]),
      extra_embeddings: tensor(new Float32Array(dim), [1, dim]), // nobody has learned words here
      clip_skip: tensor(BigInt64Array.of(BigInt(clipSkip)), []),
    });
    read.push(tensor(weighted(states.data, weights), states.dims));
  }
  return concatenated(read, 1);
}

/**
 * States of a chunk (L, D), each token's times its weight, and then all scaled to their old mean.
 *
 * z' = w*z * mean(z) / mean(w*z), in float64 and rounded once, as the web interfaces do; unscaled where one of the means
 * is below `LEAST_MEAN` of the root mean square of z, which says nothing of scale.
 */
export function weighted(states, weights) {
  if (weights.every((weight) => weight === 1)) return states;
  const dim = states.length / weights.length;
  const after = Float64Array.from(states, (value, i) => value * weights[Math.floor(i / dim)]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const before = Float64Array.from(states);
  const means = [mean(before), mean(after)];
  const least = LEAST_MEAN * Math.sqrt(mean(before.map((value) => value ** 2)));
  const ratio = Math.min(...means.map(Math.abs)) > least ? means[0] / means[1] : 1;
  return Float32Array.from(after, (value) => value * ratio);
}

/** States (1, l, D) with as many chunks of the empty prompt behind them as make it (1, length, D). */
function followedBy(states, empty, length) {
  const missing = length - states.dims[1];
  return missing ? concatenated([states, ...new Array(missing / empty.dims[1]).fill(empty)], 1) : states;
}
