/** Let others have a turn, such as whoever would abort, and stop if somebody has. */
export async function turn(signal) {
  await new Promise((resolve) => setTimeout(resolve));
  signal?.throwIfAborted();
}
