/**
 * The files of a served bundle, as `load` of diffuse.mjs takes them: fetched once, checked, and kept in this browser.
 *
 * What is kept lies in the Cache API under the bundle's name and the file's SHA-256, so that another file of the same
 * name is never taken for it. It is kept only when size and hash are right, one file at a time: what was complete when
 * a connection broke need not be fetched again.
 */

import { sha256 } from "../sha256.mjs";
import { FetchError, SITE, fetched, whole } from "./fetched.mjs";

const CACHE = "models";

/** What the server offers: `[{ name, sha256 }]`, with the manifest's hash; the first is the default. */
export async function offered() {
  const answer = await fetched("models.json", "the list of models", { cache: "no-cache" });
  let listed;
  try {
    listed = (await answer.json()).models;
  } catch {
    listed = undefined;
  }
  const isModel = (each) => /^[\w-][\w.-]*$/.test(each?.name ?? "") && /^[0-9a-f]{64}$/.test(each.sha256);
  if (!Array.isArray(listed) || !listed.every(isModel)) throw new FetchError("models.json is no list of models");
  if (!listed.length)
    throw new FetchError("there is no model here; serve one with: python -m runtime web --model BUNDLE");
  return listed;
}

export class ModelFiles {
  /**
   * Fetch nothing yet.
   *
   * @param model one of `offered()`.
   * @param say called with a line that somebody should read, such as that this browser has no room.
   */
  constructor(model, say) {
    Object.assign(this, { model, say, name: model.name, used: new Set(), manifestBytes: null });
    this.keep = "caches" in globalThis; // whether this browser does, as far as is known
    this.fetching = false; // whether the file that was asked for last comes from the server
  }

  /** The same bytes whenever it is asked for, whatever the server has by then. */
  async manifest(options) {
    this.manifestBytes ??= await this.read("manifest.json", { ...options, sha256: this.model.sha256 });
    return this.manifestBytes;
  }

  async read(name, { size, maxSize, sha256: expected, signal, onProgress }) {
    const what = `${this.name}/${name}`;
    const fromServer = async () => {
      const answer = await fetched(`models/${what}`, what, { signal, cache: "no-store" }); // it is kept here, and once
      return whole(answer, { what, size, maxSize, signal, onProgress });
    };
    if (expected === undefined) return fromServer(); // of the conformance file nobody says what it should be
    const key = this.key(expected);
    const kept = await this.kept(key, expected);
    this.fetching = kept === null;
    if (kept) return kept;
    const bytes = await fromServer();
    if ((await sha256(bytes)) !== expected) {
      throw new FetchError(`${what} is damaged: it does not have the SHA-256 that it should. Nothing of it was kept`);
    }
    await this.putAway(key, bytes);
    return bytes;
  }

  /** Where something about this model is kept. */
  key(what) {
    const { href } = new URL(`kept/${this.name}/${what}`, SITE);
    this.used.add(href);
    return href;
  }

  /** Do something with what is kept. Some browsers have no room, and some keep nothing at all: there it is null. */
  async withCache(act) {
    if (!this.keep) return null;
    try {
      return await act(await caches.open(CACHE));
    } catch {
      this.keep = false;
      this.say("This browser does not keep the model, for want of room or of leave: it is fetched again next time.");
      return null;
    }
  }

  /** A file from before, if it still is what it was. */
  async kept(key, expected) {
    return this.withCache(async (cache) => {
      const answer = await cache.match(key);
      if (!answer) return null;
      const bytes = new Uint8Array(await answer.arrayBuffer());
      if ((await sha256(bytes)) === expected) return bytes;
      await cache.delete(key);
      return null;
    });
  }

  async putAway(key, bytes) {
    await this.withCache((cache) => cache.put(key, new Response(bytes)));
  }

  /** Remember something of this very model, which its manifest's hash stands for. */
  async note(what) {
    await this.putAway(this.key(`${this.model.sha256}/${what}`), new Uint8Array());
  }

  async isNoted(what) {
    return Boolean(await this.withCache((cache) => cache.match(this.key(`${this.model.sha256}/${what}`))));
  }

  /** Forget what earlier versions of this model have left, once all of this one is there. What is noted of it stays. */
  async tidy() {
    const own = new URL(`kept/${this.name}/`, SITE).href;
    const isStale = ({ url }) =>
      url.startsWith(own) && !url.startsWith(`${own}${this.model.sha256}/`) && !this.used.has(url);
    await this.withCache(async (cache) => {
      await Promise.all((await cache.keys()).filter(isStale).map((request) => cache.delete(request)));
    });
  }
}

/** Forget every model that is kept. */
export async function forget() {
  if ("caches" in globalThis) await caches.delete(CACHE);
}
