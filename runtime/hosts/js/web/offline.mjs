/** Keeping the page itself, so that it opens without a network. */

const CACHE = "page"; // of service-worker.js

/**
 * @param files addresses of the engine that draws, which had been fetched before anything could keep them.
 * @param kept whether the model is.
 * @param say called with a line about what is kept.
 */
export async function keepForOffline({ files, kept }, say) {
  try {
    await atWork(await navigator.serviceWorker.register(new URL("../service-worker.js", import.meta.url)));
    await keepMissing(files);
  } catch {
    say("This browser does not keep the page: it needs its server whenever it is opened.");
    return;
  }
  const models = kept
    ? "and so are the models that it has read: it works offline."
    : "but not the model: it needs its server for that.";
  const more = crossOriginIsolated ? "" : " Load it again, and it may use all cores of the processor.";
  say(`This page is kept in this browser, ${models}${more}`);
}

/** Until a service worker has kept the page's files and is at work; one that could not keep them is thrown away. */
function atWork({ active, waiting, installing }) {
  const worker = active ?? waiting ?? installing;
  return new Promise((resolve, reject) => {
    const look = () => {
      if (worker.state === "activated") resolve();
      else if (worker.state === "redundant") reject(new Error("the page's files cannot be kept"));
    };
    worker.addEventListener("statechange", look);
    look();
  });
}

async function keepMissing(files) {
  const cache = await caches.open(CACHE);
  for (const file of files) {
    const url = new URL(`../${file}`, import.meta.url);
    if (!(await cache.match(url))) await cache.add(url);
  }
}
