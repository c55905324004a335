/** The picture, as it forms and when it is finished, and how it came about. */

const MAX_SCALE = 20; // of a pixel that is shown as a square
const SMOOTH_FROM = 256; // pixels a side, from which on single ones are not looked at

export class Stage {
  /**
   * @param frame the element that the picture is fitted into.
   * @param canvas the picture, within it.
   * @param film a range input that chooses a step; `filmPart` is what it is hidden with, `filmStep` says which it is.
   */
  constructor({ frame, canvas, film, filmPart, filmStep }) {
    Object.assign(this, { frame, canvas, film, filmPart, filmStep });
    Object.assign(this, { size: { width: 1, height: 1 }, steps: [], about: "" });
    new ResizeObserver(() => this.fit()).observe(frame);
    film.addEventListener("input", () => this.look(film.valueAsNumber));
  }

  /** Begin a picture of a size in pixels; `about` is what it shall be, in words. */
  begin(size, about) {
    Object.assign(this, { size, about, steps: [] });
    this.filmPart.hidden = true;
    this.frame.classList.remove("empty");
    Object.assign(this.canvas, { width: 1, height: 1 }); // which makes it empty
    this.fit();
  }

  /** On a phone it lies below what is asked. */
  comeIntoSight() {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.frame.parentElement.scrollIntoView({ block: "nearest", behavior: calm ? "instant" : "smooth" });
  }

  /** Show what there is after a row. A preview may have fewer pixels than the picture, which then are larger. */
  step(preview, row, rows) {
    if (preview) this.steps.push(preview);
    if (preview) paint(this.canvas, preview);
    this.canvas.setAttribute("aria-label", `${this.about}: step ${row} of ${rows}`);
  }

  /** Show a finished picture, with the steps that led to it. */
  finish(picture, steps = this.steps) {
    Object.assign(this, { size: picture, steps: [...steps.slice(0, -1), picture] });
    this.fit();
    Object.assign(this.film, { max: this.steps.length, value: this.steps.length });
    this.filmPart.hidden = this.steps.length < 2;
    this.look(this.steps.length);
  }

  look(step) {
    const last = this.steps.length;
    paint(this.canvas, this.steps[step - 1]);
    this.filmStep.textContent = `${step} / ${last}`;
    this.film.setAttribute("aria-valuetext", `step ${step} of ${last}`);
    this.canvas.setAttribute("aria-label", step === last ? this.about : `${this.about}: step ${step} of ${last}`);
  }

  /** As large as there is room, each of its pixels a whole number of the screen's where they are seen as squares. */
  fit() {
    const { width, height } = this.size;
    const style = getComputedStyle(this.frame);
    const room = Math.min(parseFloat(style.width) / width, parseFloat(style.height) / height);
    const whole = Math.floor(room * devicePixelRatio) / devicePixelRatio;
    const crisp = Math.max(width, height) < SMOOTH_FROM && whole > 0;
    const scale = crisp ? Math.min(whole, MAX_SCALE) : Math.min(room, 1);
    Object.assign(this.canvas.style, { width: `${width * scale}px`, height: `${height * scale}px` });
    this.canvas.classList.toggle("crisp", crisp);
  }
}

/** Put pixels of one or three channels, `{ data, width, height, channels }`, into a canvas. */
export function paint(canvas, { data, width, height, channels }) {
  const pixels = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      pixels.data[4 * pixel + channel] = data[channels * pixel + (channels === 3 ? channel : 0)];
    }
    pixels.data[4 * pixel + 3] = 255;
  }
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}
