/**
 * Standard normal noise: the same numbers for the same seed, on every machine and in every language (runtime/noise.py).
 *
 * Every image has a generator of its own and takes its draws in order; docs/bundle.md, section "Noise", specifies both
 * kinds. Both turn two uniform numbers u and v into normal ones, sqrt(-2 ln u) cos(2 pi v) and the same with the sine
 * (Box and Muller 1958).
 */

const TWO_32 = 2 ** 32;
const BLOCK = 16; // PyTorch makes normal numbers in blocks of so many
const STATE = 624; // words of a Mersenne Twister
const SHIFT = 397;

/** The high 32 bits of a product of two 32-bit words. */
function highProduct(a, b) {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const [cross, other] = [aLow * bHigh, aHigh * bLow];
  const middle = ((aLow * bLow) >>> 16) + (cross & 0xffff) + (other & 0xffff);
  return (aHigh * bHigh + (cross >>> 16) + (other >>> 16) + (middle >>> 16)) >>> 0;
}

/**
 * Philox 4x32-10: a counter and a key of 32-bit words give four random words (Salmon et al. 2011, section 3.3).
 */
export function philox4x32([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = [highProduct(c0, 0xd2511f53), Math.imul(c0, 0xd2511f53) >>> 0];
    const [high1, low1] = [highProduct(c2, 0xcd9e8d57), Math.imul(c2, 0xcd9e8d57) >>> 0];
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    [k0, k1] = [(k0 + 0x9e3779b9) >>> 0, (k1 + 0xbb67ae85) >>> 0];
  }
  return [c0, c1, c2, c3];
}

/** The words g0 and g1 of elements 0 .. count - 1 of one draw, Uint32Array of (count, 2). */
export function philoxWords(seed, draw, count) {
  const key = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  const words = new Uint32Array(2 * count);
  for (let index = 0; index < count; index++) {
    const [g0, g1] = philox4x32([draw, 0, index, 0], key);
    words[2 * index] = g0;
    words[2 * index + 1] = g1;
  }
  return words;
}

/** Noise from Philox 4x32-10: all it remembers is the number of the next draw. */
class PhiloxGenerator {
  constructor(seed) {
    this.seed = seed;
    this.nextDraw = 0;
  }

  /** The next draw. Of the two normal numbers that u and v allow, only the sine is used. */
  draw(count) {
    const words = philoxWords(this.seed, this.nextDraw++, count);
    return Float32Array.from({ length: count }, (_, index) => {
      const u = words[2 * index] / TWO_32 + 2 ** -33; // never 0 or 1
      const v = words[2 * index + 1] / TWO_32 + 2 ** -33;
      return Math.sqrt(-2 * Math.log(u)) * Math.sin(2 * Math.PI * v);
    });
  }
}

/** MT19937 (Matsumoto and Nishimura 1998, seeded as in 2002), by the low 32 bits of the seed alone, as in PyTorch. */
class MersenneTwister {
  constructor(seed) {
    this.state = new Uint32Array(STATE);
    this.next = STATE;
    this.state[0] = Number(seed & 0xffffffffn);
    for (let i = 1; i < STATE; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(before, 1812433253) + i;
    }
  }

  word() {
    if (this.next === STATE) this.renew();
    let word = this.state[this.next++];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  }

  renew() {
    for (let i = 0; i < STATE; i++) {
      const joined = (this.state[i] & 0x80000000) | (this.state[(i + 1) % STATE] & 0x7fffffff);
      this.state[i] = this.state[(i + SHIFT) % STATE] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }
}

/** The first outputs of the Mersenne Twister, Uint32Array of (count,). */
export function mersenneWords(seed, count) {
  const twister = new MersenneTwister(seed);
  return Uint32Array.from({ length: count }, () => twister.word());
}

/** The noise of PyTorch's CPU generator: draw i is the i-th call of `torch.randn`. */
class TorchGenerator {
  constructor(seed) {
    this.twister = new MersenneTwister(seed);
    this.spare = null; // survives the draw that made it, and any blocks drawn in between
  }

  /** The next draw; below 16 numbers PyTorch makes them one by one, in another way. */
  draw(count) {
    return count < BLOCK ? Float32Array.from({ length: count }, () => this.single()) : this.blocks(count);
  }

  /** Whole blocks from the start; if numbers are left over, the last block ends with them and is drawn anew. */
  blocks(count) {
    const uniforms = this.uniforms(count);
    const normals = new Float32Array(count);
    const whole = count - (count % BLOCK);
    for (let begin = 0; begin < whole; begin += BLOCK)
      normals.set(boxMuller(uniforms.subarray(begin, begin + BLOCK)), begin);
    if (whole < count) normals.set(boxMuller(this.uniforms(BLOCK)), count - BLOCK);
    return normals;
  }

  uniforms(count) {
    return Float64Array.from({ length: count }, () => (this.twister.word() % 2 ** 24) / 2 ** 24);
  }

  /** The cosine of a pair, and the next time its sine. */
  single() {
    if (this.spare !== null) {
      const normal = this.spare;
      this.spare = null;
      return normal;
    }
    const [v, u] = [this.uniform53(), this.uniform53()];
    const [radius, angle] = [Math.sqrt(-2 * Math.log1p(-u)), 2 * Math.PI * v];
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  uniform53() {
    const [high, low] = [this.twister.word(), this.twister.word()];
    return ((high % 2 ** 21) * TWO_32 + low) / 2 ** 53;
  }
}

/** Normal numbers of one block: number j < 8 is paired with j + 8; cosines first, then sines. */
function boxMuller(uniforms) {
  const half = BLOCK / 2;
  const normals = new Float64Array(BLOCK);
  for (let j = 0; j < half; j++) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniforms[j])); // u may be 0, but not 1
    // PyTorch's product is in float32.
    const angle = Math.fround(Math.fround(2 * Math.PI) * Math.fround(uniforms[j + half]));
    normals[j] = radius * Math.cos(angle);
    normals[j + half] = radius * Math.sin(angle);
  }
  return normals;
}

/** Generators by name, each made from a seed, a BigInt from 0 to 2^64 - 1. */
export const GENERATORS = { philox: PhiloxGenerator, torch: TorchGenerator };

/** A generator before its draw 0; `rng` is a key of `GENERATORS`. */
export function noiseGenerator(rng, seed) {
  return new GENERATORS[rng](seed);
}

/** The next draw of each image's noise, one after another. */
export function drawEach(generators, count) {
  const drawn = new Float32Array(generators.length * count);
  generators.forEach((generator, k) => drawn.set(generator.draw(count), k * count));
  return drawn;
}
