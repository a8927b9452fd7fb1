"""The embedded teacher and the script that trains it."""
