"""Learned words (textual inversion, Gal et al. 2022): read from files that anybody made, and found in prompts."""

from runtime.embeddings.file import Embedding
from runtime.embeddings.named import Embeddings, Fit, absent_names
from runtime.embeddings.opening import EmbeddingInput, add_embedding_arguments, embedding_settings, open_embeddings

__all__ = [
    "Embedding",
    "EmbeddingInput",
    "Embeddings",
    "Fit",
    "absent_names",
    "add_embedding_arguments",
    "embedding_settings",
    "open_embeddings",
]
