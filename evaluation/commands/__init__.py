"""The commands of ``evaluation``, a module each."""
