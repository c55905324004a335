import { EngineError } from "./errors.mjs";

/** A file's SHA-256, in hexadecimal digits. */
export async function sha256(bytes) {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) throw new EngineError("SHA-256 cannot be computed here; open the page over https, or from localhost");
  const digest = new Uint8Array(await subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
