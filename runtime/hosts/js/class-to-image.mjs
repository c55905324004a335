/** From class labels to images of pixels: runtime/class_to_image.py. */

import { RequestError } from "./errors.mjs";
import { toUint8 } from "./image.mjs";
import { checkCount, shown } from "./limits.mjs";
import { eachImage, tensor } from "./tensor.mjs";

/** What a bundle of classes makes of a request; the loop is the same for all. */
export class ClassToImage {
  static takes = ["classLabels"];
  static roles = ["unet"];
  defaultBatchSize = 32;

  constructor(manifest) {
    this.manifest = manifest;
  }

  /** One image for each label, checked: of each its conditions; their shape; nothing else can be chosen. */
  request({ classLabels, width, height }) {
    const { pixels } = this.manifest;
    const conditions = this.conditions(classLabels);
    this.checkSize(width, height);
    return { conditions, shape: [pixels.channels, pixels.height, pixels.width], chosen: {} };
  }

  /** What the U-Net is told of labels: all images are one group. */
  async encode({ conditions }) {
    const { null_class: none } = this.manifest.conditioning;
    const told = (labels) => ({ class_labels: tensor(BigInt64Array.from(labels, BigInt), [labels.length]) });
    const cond = told(conditions.map((each) => each.class_label));
    return [{ images: [...conditions.keys()], cond, uncond: told(conditions.map(() => none)) }];
  }

  /** A sample's pixels as pictures. */
  async decode(sample) {
    return eachImage(sample, toUint8);
  }

  preview(sample) {
    return eachImage(sample, toUint8);
  }

  /** The label of every image. */
  conditions(classLabels) {
    const { name, conditioning } = this.manifest;
    if (classLabels === undefined) throw new RequestError(`${name} draws classes; give classLabels`);
    const labels = Array.isArray(classLabels) ? classLabels : [classLabels];
    if (!labels.length) throw new RequestError("there is no label to draw; give at least one");
    checkCount(labels.length);
    const { num_classes: count, null_class: none } = conditioning;
    const wrong = labels.findIndex((label) => !Number.isSafeInteger(label) || label < 0 || label > none);
    if (wrong !== -1) {
      const label = shown(labels[wrong]);
      throw new RequestError(`label ${label} is out of range; ${name} has 0 to ${count - 1}, and ${none} for none`);
    }
    return labels.map((label) => ({ class_label: label }));
  }

  checkSize(width, height) {
    const { name, pixels } = this.manifest;
    const asked = [width ?? pixels.width, height ?? pixels.height];
    if (asked[0] !== pixels.width || asked[1] !== pixels.height) {
      throw new RequestError(
        `${name} draws ${pixels.width}x${pixels.height} pixels only, not ${asked.map(shown).join("x")}`,
      );
    }
  }
}
