/** Keeping the page itself, so that it opens without a network. */

/** @param say called with a line about whether it does. */
export async function keepForOffline(say) {
  try {
    await navigator.serviceWorker.register(new URL("../service-worker.js", import.meta.url));
    await navigator.serviceWorker.ready;
    const more = crossOriginIsolated ? "" : " Load it again, and it may use all cores of the processor.";
    say(`This page is kept in this browser, and so are the models that it has read: it works offline.${more}`);
  } catch {
    say("This browser does not keep the page: it needs its server whenever it is opened.");
  }
}
