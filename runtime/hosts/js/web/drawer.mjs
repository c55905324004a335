/** The page's end of worker.mjs. */

export class Drawer {
  /**
   * Start nothing yet.
   *
   * @param hear called with every message about the last job; `{ kind: "broken", message }` where the worker is lost, and
   *   with it the model that it had. The next job starts another.
   */
  constructor(hear) {
    this.hear = hear;
    this.job = 0;
    this.worker = null;
  }

  start() {
    const worker = new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" });
    worker.addEventListener("message", ({ data }) => {
      if (data.job === this.job) this.hear(data);
    });
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      worker.terminate();
      this.worker = null;
      this.hear({ kind: "broken", message: event.message || "a part of the page cannot be loaded" });
    });
    return worker;
  }

  /** Read a model; whatever runs is ended. */
  open(model, engine) {
    this.tell({ kind: "open", model, engine });
  }

  /** Draw with the model that was opened last. */
  draw(request) {
    this.tell({ kind: "draw", request });
  }

  /** Replay the conformance file of that model. */
  check() {
    this.tell({ kind: "check" });
  }

  /** End what runs. */
  cancel() {
    this.worker?.postMessage({ kind: "cancel", job: this.job });
  }

  /** Remove the models that are kept. */
  forget() {
    this.tell({ kind: "forget" });
  }

  tell(message) {
    this.job += 1;
    this.worker ??= this.start();
    this.worker.postMessage({ ...message, job: this.job });
  }
}
