"""The commands of ``pipeline``, one module per theme; each has ``register(app)``."""
