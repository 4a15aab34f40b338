"""Build time: what makes a model harder to copy, before it is sealed. Torch is allowed here, and nowhere near serving.

`artifact` and `calibration` need numpy and msgspec alone, `graphs` needs the extra `seal`, training needs `torch`.
"""
