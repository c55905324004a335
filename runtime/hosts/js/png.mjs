/** PNG files (ISO/IEC 15948), written with what the platform has: `CompressionStream` is in Node and in browsers. */

import { RequestError } from "./errors.mjs";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const COLOUR_TYPES = { 1: 0, 3: 2 }; // grey, and red, green and blue
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

export async function encodePng({ data, width, height, channels }, texts = {}) {
  if (!(channels in COLOUR_TYPES) || data.length !== width * height * channels) {
    throw new RequestError(
      `a picture of ${width}x${height} pixels in ${channels} channels has not ${data.length} bytes`,
    );
  }
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, COLOUR_TYPES[channels]], 8); // 8 bits; no interlacing
  const chunks = [chunk("IHDR", header)];
  for (const [keyword, text] of Object.entries(texts)) chunks.push(textChunk(keyword, text));
  chunks.push(chunk("IDAT", await deflated(filtered(data, width * channels, channels))));
  chunks.push(chunk("IEND", new Uint8Array(0)));
  return joined([Uint8Array.from(SIGNATURE), ...chunks]);
}

function chunk(type, data) {
  const whole = new Uint8Array(data.length + 12);
  const view = new DataView(whole.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) whole[4 + i] = type.charCodeAt(i);
  whole.set(data, 8);
  view.setUint32(8 + data.length, crc32(whole.subarray(4, 8 + data.length)));
  return whole;
}

/** tEXt for what is Latin-1, else iTXt, which is UTF-8. */
function textChunk(keyword, text) {
  if (/^[\0-\xff]*$/.test(text)) {
    return chunk(
      "tEXt",
      Uint8Array.from(`${keyword}\0${text}`, (c) => c.charCodeAt(0)),
    );
  }
  return chunk("iTXt", new TextEncoder().encode(`${keyword}\0\0\0\0\0${text}`)); // not compressed, no language
}

/**
 * Rows that are easier to compress: each with the filter whose differences are smallest, as the specification suggests
 * (section 12.7).
 */
function filtered(data, stride, channels) {
  const rows = data.length / stride;
  const out = new Uint8Array(rows * (stride + 1));
  let above = new Uint8Array(stride);
  for (let y = 0; y < rows; y++) {
    const row = data.subarray(y * stride, (y + 1) * stride);
    let [best, least] = [null, Infinity];
    FILTERS.forEach((predict, type) => {
      const differences = row.map((value, i) => {
        const [left, corner] = i < channels ? [0, 0] : [row[i - channels], above[i - channels]];
        return value - predict(left, above[i], corner);
      });
      const sum = differences.reduce((total, value) => total + (value < 128 ? value : 256 - value), 0);
      if (sum < least) [best, least] = [{ type, differences }, sum];
    });
    out[y * (stride + 1)] = best.type;
    out.set(best.differences, y * (stride + 1) + 1);
    above = row;
  }
  return out;
}

/** None, Sub, Up, Average and Paeth: what a byte is expected to be, by those left of it, above it, and left above. */
const FILTERS = [
  () => 0,
  (left) => left,
  (left, up) => up,
  (left, up) => (left + up) >> 1,
  (left, up, corner) => {
    const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
    if (a <= b && a <= c) return left;
    return b <= c ? up : corner;
  },
];

async function deflated(data) {
  const stream = new Blob([data]).stream().pipeThrough(new CompressionStream("deflate")); // in zlib's wrapping
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let end = 0;
  for (const part of parts) {
    whole.set(part, end);
    end += part.length;
  }
  return whole;
}
