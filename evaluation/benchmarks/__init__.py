"""Benchmarks: label sets, prompt templates and protocols, one file each."""
