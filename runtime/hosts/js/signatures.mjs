/** What goes into and comes out of a graph of each role, as docs/bundle.md lists it: runtime/signatures.py. */

import { BundleError, quoted } from "./errors.mjs";

/** Inputs and outputs of graphs by role. A size by name stands for any; numbers are those of the manifest. */
function signatures({ unet_input: unetInput, conditioning, latents, pixels }) {
  const tensor = (name, dtype, ...shape) => ({ name, dtype, shape });
  const channels = unetInput.reduce((sum, each) => sum + each.channels, 0);
  const unet = (condition, outputs, ...size) => ({
    inputs: [
      tensor("sample", "float32", "batch", channels, ...size),
      tensor("timestep", "float32", "batch"),
      condition,
    ],
    outputs: [tensor("out_sample", "float32", "batch", outputs, ...size)],
  });
  if (conditioning.kind === "class") {
    return { unet: unet(tensor("class_labels", "int64", "batch"), channels, pixels.height, pixels.width) };
  }
  const { embedding_dim: dim } = conditioning;
  const image = tensor("sample", "float32", "batch", 3, "height", "width");
  return {
    text_encoder: {
      inputs: [
        tensor("input_ids", "int64", "batch", "length"),
        tensor("extra_embeddings", "float32", "extra", dim),
        tensor("clip_skip", "int64"),
      ],
      outputs: [tensor("last_hidden_state", "float32", "batch", "length", dim)],
    },
    unet: unet(tensor("encoder_hidden_states", "float32", "batch", "length", dim), latents.channels, "h", "w"),
    vae_encoder: {
      inputs: [image],
      outputs: [tensor("latent_parameters", "float32", "batch", 2 * latents.channels, "h", "w")],
    },
    vae_decoder: {
      inputs: [tensor("latent_sample", "float32", "batch", latents.channels, "h", "w")],
      outputs: [image],
    },
  };
}

/** Hold the declared inputs and outputs of every graph against its role and against the rest of the manifest. */
export function checkGraphs(manifest, where) {
  const roles = signatures(manifest);
  const { graphs, family } = manifest;
  const optional = ["vae_encoder"]; // only those who start from an image need it
  const missing = Object.keys(roles).filter((role) => !optional.includes(role) && !hasVariants(graphs, role));
  const unknown = Object.keys(graphs).filter((role) => !Object.hasOwn(roles, role));
  if (missing.length || unknown.length) {
    throw new BundleError(
      `${where}: graphs of ${family} are ${Object.keys(roles).join(", ")}; ` +
        `missing here: ${missing.join(", ") || "none"}, ` +
        `unknown: ${unknown.map((role) => quoted(role)).join(", ") || "none"}`,
    );
  }
  for (const [role, variants] of Object.entries(graphs)) {
    for (const [variant, graph] of Object.entries(variants)) {
      for (const kind of ["inputs", "outputs"]) {
        if (!sameTensors(graph[kind], roles[role][kind])) {
          throw new BundleError(
            `${where}: graphs: ${role}.${variant} must have the ${kind} ${inWords(roles[role][kind])}, ` +
              `not ${inWords(graph[kind])}`,
          );
        }
      }
    }
  }
}

function hasVariants(graphs, role) {
  return Object.hasOwn(graphs, role) && Object.keys(graphs[role]).length > 0;
}

/** The same names, dtypes and ranks, and the same sizes where both are numbers; in any order. */
function sameTensors(declared, expected) {
  return sameBut((a, b) => a === b || typeof a === "string" || typeof b === "string", declared, expected);
}

/**
 * As `sameTensors`, and names of sizes where the other has names: what a file has, and what its manifest says of it.
 */
export function sameSignature(found, declared) {
  return sameBut((a, b) => a === b || (typeof a === "string" && typeof b === "string"), found, declared);
}

function sameBut(sameSize, some, others) {
  const fits = (a, b) =>
    a.dtype === b.dtype && a.shape.length === b.shape.length && a.shape.every((size, i) => sameSize(size, b.shape[i]));
  const byName = new Map(some.map((each) => [each.name, each]));
  const each = others.every((other) => byName.has(other.name) && fits(byName.get(other.name), other));
  return each && byName.size === some.length && some.length === others.length;
}

export function inWords(tensors) {
  return tensors.map(({ name, dtype, shape }) => `${name} ${dtype} (${shape.join(", ")})`).join(", ") || "(none)";
}
