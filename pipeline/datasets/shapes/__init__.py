"""Parametric shapes: a framework of primitives, and classes by theme."""
