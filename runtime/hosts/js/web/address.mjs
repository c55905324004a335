/** The browser's address, which says what stands in the form: it can be copied, and is there after loading anew. */

const PAUSE = 300; // milliseconds; browsers refuse an address that changes at every key

let timer;

/** @param asFragment called once nothing has changed for a moment; null leaves the address as it is. */
export function remember(asFragment) {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const fragment = asFragment();
    if (fragment !== null) history.replaceState(null, "", fragment);
  }, PAUSE);
}
