/**
 * Numbers in C order with their sizes, as this host hands them about: `{ data, dims }`, float32 or int64 by the kind of
 * array. The first dimension is that of images.
 */

export function tensor(data, dims) {
  return { data, dims };
}

export function product(sizes) {
  return sizes.reduce((total, size) => total * size, 1);
}

/** One image's elements of a batch's. */
export function imageOf(data, k, size) {
  return data.subarray(k * size, (k + 1) * size);
}

/** What a function makes of each image of a batch (B, C, H, W), given its elements and (C, H, W). */
export function eachImage({ data, dims: [count, ...shape] }, make) {
  return Array.from({ length: count }, (_, k) => make(imageOf(data, k, product(shape)), shape));
}

/** Some of the images, `count` of them from `begin` on. */
export function rows({ data, dims: [, ...shape] }, begin, count) {
  const size = product(shape);
  return tensor(data.subarray(begin * size, (begin + count) * size), [count, ...shape]);
}

/** Tensors of the same kind one after the other along a dimension: 0 for images, 1 for tokens of a single image. */
export function concatenated(parts, dimension = 0) {
  const Numbers = parts[0].data.constructor;
  const data = new Numbers(parts.reduce((sum, part) => sum + part.data.length, 0));
  let end = 0;
  for (const part of parts) {
    data.set(part.data, end);
    end += part.data.length;
  }
  const dims = [...parts[0].dims];
  dims[dimension] = parts.reduce((sum, part) => sum + part.dims[dimension], 0);
  return tensor(data, dims);
}
