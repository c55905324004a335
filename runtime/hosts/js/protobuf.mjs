/**
 * The skeleton of a protobuf message from a stranger, with nothing copied and an end to the work: runtime/protobuf.py.
 */

import { BundleError } from "./errors.mjs";

const [VARINT, FIXED64, BYTES, FIXED32] = [0, 1, 2, 5];
const MAX_FIELDS = 10 ** 6; // a full-size U-Net has about 10^5 on the way to its tensors
const MAX_STRING = 4096;

/** Reads one file's messages. The number of fields is bounded over all of them, however they are nested. */
export class Reader {
  /** `where` is what messages call the file. */
  constructor(where) {
    this.where = where;
    this.left = MAX_FIELDS;
  }

  /** [number, value] of each field of a message: a view for strings and messages, else a number. */
  *fields(data) {
    let position = 0;
    while (position < data.length) {
      if (--this.left < 0)
        throw new BundleError(`${this.where} has more than ${MAX_FIELDS} fields; it is no graph of a network`);
      let tag, size;
      [tag, position] = this.varint(data, position);
      const [number, wireType] = [Math.floor(tag / 8), tag % 8];
      if (wireType === VARINT) {
        let value;
        [value, position] = this.varint(data, position);
        yield [number, value];
        continue;
      }
      if (wireType === BYTES) [size, position] = this.varint(data, position);
      else if (wireType === FIXED64) size = 8;
      else if (wireType === FIXED32) size = 4;
      else throw new BundleError(`${this.where} is no ONNX file: field ${number} has wire type ${wireType}`);
      if (size > data.length - position) {
        throw new BundleError(
          `${this.where} is cut off, or no ONNX file: a field of ${size} bytes goes beyond its end`,
        );
      }
      yield [number, data.subarray(position, position + size)];
      position += size;
    }
  }

  /** A number of seven bits a byte, lowest first, and the position behind it. Above 2^53 its last digits are lost. */
  varint(data, position) {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (position >= data.length) {
        throw new BundleError(`${this.where} is cut off, or no ONNX file: it ends inside a number`);
      }
      const byte = data[position++];
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return [value, position];
    }
    throw new BundleError(`${this.where} is no ONNX file, or damaged: a number has more than ten bytes`);
  }

  /** A field's value as a message, which a number is not. */
  message(value) {
    if (typeof value === "number") {
      throw new BundleError(`${this.where} has a number where ONNX has a message; it is no ONNX file, or damaged`);
    }
    return value;
  }

  text(value) {
    const data = this.message(value);
    if (data.length > MAX_STRING) {
      throw new BundleError(`${this.where} has a name of ${data.length} bytes; at most ${MAX_STRING} are read`);
    }
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
    } catch {
      throw new BundleError(`${this.where} has a name that is not UTF-8; it is no ONNX file, or damaged`);
    }
  }
}
