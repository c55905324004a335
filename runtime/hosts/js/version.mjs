/** The version of this package, which pictures carry; package.json and Python's runtime/version.py have the same. */

export const VERSION = "0.1.0";
