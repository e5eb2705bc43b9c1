"""How an embedded teacher is made: ``python -m smsff.teacher.recipe`` (``make teacher``), see ``__main__``."""
