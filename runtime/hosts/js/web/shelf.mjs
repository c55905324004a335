/** What was drawn since the page was opened, to go back to. */

import { allow } from "./form.mjs";
import { paint } from "./stage.mjs";

const MOST = 48;

export class Shelf {
  /**
   * @param list the element that the pictures are put into; `part` is what is hidden while there is none.
   * @param chosen called with an entry, `{ picture, steps, settings, description, about }`, to go back to it; true where
   *   that was done.
   */
  constructor(list, part, chosen) {
    Object.assign(this, { list, part, chosen });
  }

  /** The newest comes first. */
  add(entry) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const canvas = document.createElement("canvas");
    const words = `${entry.about}, seed ${entry.picture.seed}`;
    paint(canvas, entry.picture);
    canvas.classList.toggle("crisp", entry.picture.width < 128);
    button.append(canvas);
    button.setAttribute("aria-label", words);
    button.title = words;
    button.addEventListener("click", () => {
      if (this.chosen(entry)) this.mark(button);
    });
    const item = document.createElement("li");
    item.append(button);
    this.list.prepend(item);
    while (this.list.children.length > MOST) this.list.lastElementChild.remove();
    this.part.hidden = false;
    this.mark(button);
  }

  /** Whether its pictures can be gone back to now. */
  allow(can) {
    allow(can, ...this.list.querySelectorAll("button"));
  }

  mark(button) {
    this.list.querySelector("[aria-current]")?.removeAttribute("aria-current");
    button.setAttribute("aria-current", "true");
  }
}
