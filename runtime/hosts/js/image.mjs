/** From a network's numbers to pictures: runtime/image.py and runtime/preview.py. */

/**
 * Pixels in [-1, 1], channel by channel, as bytes, pixel by pixel; rounded half to even, not truncated.
 *
 * @param sample of one image, (C, H, W).
 */
export function toUint8(sample, [channels, height, width]) {
  const pixels = height * width;
  const bytes = new Uint8ClampedArray(pixels * channels); // which rounds half to even, and keeps 0 to 255
  for (let c = 0; c < channels; c++) {
    for (let k = 0; k < pixels; k++) bytes[k * channels + c] = (sample[c * pixels + k] + 1) * 127.5;
  }
  return { data: new Uint8Array(bytes.buffer), width, height, channels };
}

/**
 * How latents look that are not finished, at once and without the decoder: a pixel for each.
 *
 * @param preview of a manifest's latents: `weights`, three for each channel, and `biases`.
 * @param sample of one image, (C, h, w).
 */
export function previewLatents({ weights, biases }, sample, [, height, width]) {
  const pixels = height * width;
  const colours = new Float64Array(3 * pixels);
  for (let d = 0; d < 3; d++) {
    for (let k = 0; k < pixels; k++) {
      const sum = weights.reduce((total, row, c) => total + row[d] * sample[c * pixels + k], 0) + biases[d];
      colours[d * pixels + k] = Number.isNaN(sum) ? 0 : sum; // what is no number is grey
    }
  }
  return toUint8(colours, [3, height, width]);
}
