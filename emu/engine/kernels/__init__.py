"""Compiled loops on arrays of codes. Know nothing of layouts, of torch, or of text."""
