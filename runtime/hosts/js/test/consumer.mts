/**
 * A program of somebody who has installed the package: package.test.mjs compiles it in strict mode and calls `drawn`.
 * What must not compile has a `@ts-expect-error` above it, which the compiler refuses where there is no error.
 */

import { Tokenizer } from "@huggingface/tokenizers";
import {
  BundleError,
  DiffusionError,
  EngineError,
  RequestError,
  load,
  readPlan,
  type Files,
  type Image,
  type LoadProgress,
  type Pipeline,
  type Plan,
  type Result,
} from "diffusion-anywhere";
import { check, type Outcome } from "diffusion-anywhere/check";
import { checkWritable, findBundle, folderFiles, writeWhole } from "diffusion-anywhere/node";
import { encodePng } from "diffusion-anywhere/png";
import { parameters, pictureTexts, recipeText } from "diffusion-anywhere/recipe";
import * as ort from "onnxruntime-node";

export interface Drawn {
  readonly png: Uint8Array;
  readonly previews: number;
  readonly rows: number;
  readonly files: readonly string[];
}

/** A class step by step, as a PNG; whoever has no seed leaves it undefined. */
export async function drawn(folder: string, label: number, seed?: bigint): Promise<Drawn> {
  const files: string[] = [];
  const onProgress = ({ stage, file }: LoadProgress): void => void (stage === "open" && files.push(file));
  const pipeline = await load(folderFiles(folder), ort, { executionProviders: ["cpu"], threads: 1, onProgress });
  const rows: number = pipeline.plan({ numInferenceSteps: 10 }).timesteps.length;
  const previews: (readonly Image[] | null)[] = [];
  let result: Result | undefined;
  for await (const step of pipeline.denoise({ classLabels: [label], numInferenceSteps: 10, seed })) {
    previews.push(step.preview);
    if (step.row === step.rows) result = await step.result();
  }
  await pipeline.dispose();
  const picture = result?.images[0];
  if (picture === undefined) throw new RequestError("nothing was drawn");
  return { png: await encodePng(picture, pictureTexts(picture.recipe)), previews: previews.length, rows, files };
}

/** A sentence, in a page: from a server, by the other engine, to be saved. */
export async function inPage(address: string, engine: typeof import("onnxruntime-web"), plan: Plan): Promise<Blob> {
  const fetched = async (name: string, signal?: AbortSignal): Promise<Uint8Array> => {
    const response = await fetch(`${address}/${name}`, { signal: signal ?? null });
    if (!response.ok) throw new BundleError(`${name} is not there`);
    return new Uint8Array(await response.arrayBuffer());
  };
  const files: Files = {
    manifest: ({ signal }) => fetched("manifest.json", signal),
    read: (name, { signal }) => fetched(name, signal),
  };
  const options = { executionProviders: ["webgpu", { name: "wasm" }], tokenizer: Tokenizer };
  const pipeline: Pipeline = await load(files, engine, options);
  const { images, sample, warnings } = await pipeline({ prompt: ["a bag", "a shoe"], negativePrompt: "red", plan });
  const lines: readonly string[] = warnings;
  const [batch, channels]: readonly (number | undefined)[] = sample.dims;
  const texts = images.map(({ recipe }) => parameters(recipe) ?? recipeText(recipe));
  const pngs = await Promise.all(images.map((image) => encodePng(image, { Comment: texts.concat(lines).join("\n") })));
  return new Blob(pngs, { type: `image/png;images=${batch};channels=${channels}` });
}

/** What a manifest says, narrowed by its kind. */
export function words({ manifest }: Pipeline): readonly string[] | null {
  return manifest.conditioning.kind === "class" ? manifest.conditioning.names : manifest.conditioning.known_words;
}

export async function proven(model: string): Promise<Outcome[]> {
  const failed: Outcome[] = [];
  const files = folderFiles(await findBundle(model));
  for await (const outcome of check(files, ort, { tokenizer: Tokenizer, signal: AbortSignal.timeout(1000) })) {
    if (!outcome.passed && outcome.difference > outcome.tolerance) failed.push(outcome);
  }
  await checkWritable(`${files.name}.txt`);
  await writeWhole(`${files.name}.txt`, new TextEncoder().encode(failed.map((each) => each.case).join("\n")));
  return failed;
}

export function kindOf(error: unknown): string {
  if (error instanceof EngineError) return `engine: ${error.message}`;
  return error instanceof DiffusionError ? error.message : "no error of this package";
}

/** What the compiler has to refuse; nobody calls it. */
export async function wrong(pipeline: Pipeline): Promise<void> {
  // @ts-expect-error a prompt is text
  await pipeline({ prompt: 7 });
  // @ts-expect-error the key is called numInferenceSteps
  await pipeline({ prompt: "a bag", steps: 10 });
  // @ts-expect-error there are two generators of noise
  await pipeline({ prompt: "a bag", rng: "mersenne" });
  // @ts-expect-error a plan of the manifest is asked for by its name; it is not one that was checked
  await pipeline({ prompt: "a bag", plan: pipeline.manifest.plans["ddim-50"] });
  // @ts-expect-error the tokenizer is a class, which is made of the bundle's file
  await load(folderFiles("pocket"), ort, { tokenizer: "tokenizer.json" });
  // @ts-expect-error the engine has to be given
  await load(folderFiles("pocket"));
  // @ts-expect-error onProgress is of load, not of check
  check(folderFiles("pocket"), ort, { onProgress: () => {} });
  // @ts-expect-error the manifest is everybody's
  pipeline.manifest.defaults.width = 64;
  // @ts-expect-error a model of text has no names of classes
  pipeline.manifest.conditioning.names;
  const step = (await pipeline.denoise({ prompt: "a bag" }).next()).value;
  // @ts-expect-error there may be no step, and no preview
  step.preview.length;
  // @ts-expect-error a plan is read from bytes or text
  await readPlan({ sampler: "ddim" });
}
