"""Programs that ``python -m runtime benchmark`` runs beside the runtime; see ``README.md`` in this folder."""
