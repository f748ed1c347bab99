"""Experiments on the hardware: train a recipe, record a step, compare two runs."""
