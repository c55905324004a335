import type { Image } from "./diffuse.d.ts";

/**
 * A picture as the bytes of a PNG file, with text chunks. It needs `CompressionStream`, which Node and browsers have.
 *
 * @param texts by keyword, such as `pictureTexts(recipe)` of recipe.mjs; Latin-1 goes into tEXt, anything else into
 *   iTXt.
 */
export function encodePng(image: Image, texts?: Readonly<Record<string, string>>): Promise<Uint8Array<ArrayBuffer>>;
