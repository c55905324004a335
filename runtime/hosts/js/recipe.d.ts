import type { Recipe } from "./diffuse.d.ts";

/** The text chunks by which a PNG says what made it: the recipe, and for prompts the words of the web interfaces. */
export function pictureTexts(recipe: Recipe): Record<string, string>;

/** A recipe as JSON, as `python -m runtime replay` reads it: keys sorted, seeds whole, all of it ASCII. */
export function recipeText(recipe: Recipe): string;

/** What made a picture of a prompt in the words of the web interfaces; null for others. */
export function parameters(recipe: Recipe): string | null;
