"""CLIP's byte-pair tokenizer (Radford et al. 2021, section 2.4) as data: a single-file checkpoint brings none.

The vocabulary and its merges are OpenAI's, under the MIT licence beside them.
"""

from pathlib import Path

TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")
"""In the format of the tokenizers library; it adds the begin and end tokens, and neither pads nor truncates."""
