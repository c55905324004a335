/*
 * Keeps the page's own files, so that it opens without a network, and isolates it where its server does not, so that it
 * may have threads from the second visit on. Models are kept by model-files.mjs and do not come through here.
 *
 * What the server has goes before what is kept: a page is never older than its server while there is one.
 */

const CACHE = "page";
const SITE = new URL("./", self.location);
const OWN = ["./", "site.json", "models.json"]; // and what the list says
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

let listed = null; // resolves to the addresses of the page's files, once it was asked for

self.addEventListener("install", (event) => event.waitUntil(keepPage().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { method, url, cache } = event.request;
  if (method !== "GET" || !url.startsWith(SITE.href) || url.startsWith(new URL("models/", SITE).href)) return;
  if (cache === "only-if-cached") return; // which fetch() may not be asked from here
  event.respondWith(answered(event));
});

/** All that the page needs, but for what only some browsers do. */
async function keepPage() {
  const { always } = await (await fetch("site.json", { cache: "no-cache" })).json();
  const cache = await caches.open(CACHE);
  await cache.addAll([...OWN, ...always]);
}

/** What belongs to the page, by the server's list, and without a server by the one that is kept. */
async function addresses() {
  const cache = await caches.open(CACHE);
  await cache.add(new Request("site.json", { cache: "no-cache" })).catch(() => {});
  const list = await cache.match("site.json");
  const { always, when_used: whenUsed } = list ? await list.json() : { always: [], when_used: [] };
  return new Set([...OWN, ...always, ...whenUsed].map((address) => new URL(address, SITE).href));
}

async function answered(event) {
  const { request } = event;
  if (request.mode === "navigate" || !listed) listed = addresses(); // which a page that is opened anew may have changed
  const cache = await caches.open(CACHE);
  let answer;
  try {
    answer = await fetch(request);
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true, ignoreVary: true });
    if (!kept) throw error;
    return isolated(kept);
  }
  const { origin, pathname } = new URL(request.url);
  // What else the server has is none of this page's, and an answer that leads elsewhere is the browser's to follow.
  if (answer.type === "opaqueredirect" || !(await listed).has(origin + pathname)) return answer;
  if (answer.status === 200 && !answer.redirected) {
    event.waitUntil(cache.put(request, answer.clone()).catch(() => {})); // there may be no room
  }
  return isolated(answer);
}

function isolated({ body, status, statusText, headers }) {
  const own = new Headers(headers);
  for (const [name, value] of Object.entries(ISOLATED)) own.set(name, value);
  return new Response([204, 304].includes(status) ? null : body, { status, statusText, headers: own });
}
