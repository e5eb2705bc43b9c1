"""smsff: learn a one-pass stylizer from a text-to-image model, without a single style image."""

__version__ = "0.1.0"
