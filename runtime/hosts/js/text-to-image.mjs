/**
 * From prompts to images, through latents (Rombach et al. 2022): runtime/text_to_image.py.
 *
 * Shapes: B images, L tokens, D width of the text embeddings, C h w one image's latents, H W its pixels.
 */

import { RequestError, printable } from "./errors.mjs";
import { previewLatents, toUint8 } from "./image.mjs";
import { checkCount, checkWhole } from "./limits.mjs";
import { encodeChunks, encodePrompts } from "./prompt-encoding.mjs";
import { texts } from "./prompt.mjs";
import { eachImage, rows, tensor } from "./tensor.mjs";
import { turn } from "./turn.mjs";

const MAX_SIDE = 2 ** 14; // pixels

/** What a bundle of text makes of a request; the loop is the same for all. */
export class TextToImage {
  static takes = ["prompt", "negativePrompt", "numImagesPerPrompt", "clipSkip"];
  static roles = ["text_encoder", "unet", "vae_decoder"];
  defaultBatchSize = 1;

  constructor(manifest, networks, tokenizer) {
    Object.assign(this, { manifest, networks, tokenizer });
  }

  /** Images of prompts, checked, with every default filled in: of each its conditions; their shape; what was chosen. */
  request({ prompt, negativePrompt, numImagesPerPrompt, clipSkip, width, height }) {
    const conditions = this.conditions(prompt, negativePrompt, numImagesPerPrompt);
    const size = this.checkSize(width, height);
    const { num_hidden_layers: layers, clip_skip: usual } = this.manifest.conditioning;
    const chosen = { ...size, clip_skip: checkWhole("clipSkip", clipSkip ?? usual, 0, layers) };
    const { channels, factor } = this.manifest.latents;
    return { conditions, shape: [channels, size.height / factor, size.width / factor], chosen };
  }

  /** What the U-Net is told of prompts and their negatives, in groups of images with prompts of one length. */
  async encode({ plan, guidanceScale, conditions, recipe, signal, warnings }) {
    const guided = guidanceScale !== 1 && plan.guidance.some((share) => share !== 0);
    const encoder = await this.networks.session("text_encoder");
    const warn = (line) => warnings.includes(printable(line)) || warnings.push(printable(line));
    const dim = this.manifest.conditioning.embedding_dim;
    const encode = (text) => encodeChunks(encoder, this.tokenizer.chunks(text, warn), recipe.clip_skip, dim, signal);
    return encodePrompts(encode, conditions, guided);
  }

  /** Latents (B, C, h, w) as images, one by one. */
  async decode(sample, signal) {
    const decoder = await this.networks.session("vae_decoder");
    const scalingFactor = Math.fround(this.manifest.latents.scaling_factor);
    const images = [];
    for (let k = 0; k < sample.dims[0]; k++) {
      await turn(signal);
      const { data, dims } = rows(sample, k, 1);
      const scaled = data.map((x) => x / scalingFactor);
      const { sample: pixels } = await decoder.run({ latent_sample: tensor(scaled, dims) });
      if (!pixels.data.every(Number.isFinite)) {
        const remedy = this.networks.wider("vae_decoder") || "export the model again with another VAE (--vae)";
        throw new RequestError(`the VAE makes image ${k + 1} of numbers that are not finite; ${remedy}`);
      }
      images.push(...eachImage(pixels, toUint8));
    }
    return images;
  }

  /** Latents as pictures, by the manifest's linear map, if it has one. */
  preview(sample) {
    const { preview } = this.manifest.latents;
    return preview ? eachImage(sample, (own, shape) => previewLatents(preview, own, shape)) : null;
  }

  /** Prompt and negative prompt of every image. */
  conditions(prompt, negativePrompt = "", numImagesPerPrompt = 1) {
    if (prompt === undefined) throw new RequestError(`${this.manifest.name} draws what a prompt says; give one`);
    const prompts = texts(prompt);
    const negatives = Array.isArray(negativePrompt)
      ? texts(negativePrompt)
      : prompts.flatMap(() => texts(negativePrompt));
    if (!prompts.length) throw new RequestError("there is no prompt to draw; give at least one");
    if (prompts.length !== negatives.length) {
      throw new RequestError(
        `${prompts.length} prompts have ${negatives.length} negative prompts; give one, or as many`,
      );
    }
    checkWhole("numImagesPerPrompt", numImagesPerPrompt, 1);
    checkCount(prompts.length * numImagesPerPrompt);
    const pairs = prompts.map((each, k) => ({ prompt: each, negative_prompt: negatives[k] }));
    return pairs.flatMap((pair) => new Array(numImagesPerPrompt).fill(pair));
  }

  /** Width and height in pixels, with what was not said filled in. */
  checkSize(width, height) {
    const { name, latents, defaults } = this.manifest;
    const size = { width: width ?? defaults.width, height: height ?? defaults.height };
    for (const [side, value] of Object.entries(size)) {
      checkWhole(side, value, latents.factor, MAX_SIDE);
      const below = value - (value % latents.factor);
      if (value !== below)
        throw new RequestError(`${side} is ${value}; ${name} draws multiples of ${latents.factor}: ${below}`);
    }
    return size;
  }
}
