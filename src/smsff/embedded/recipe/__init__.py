"""How an embedded teacher is made: ``python -m smsff.embedded.recipe`` (``make teacher``), see ``__main__``."""
