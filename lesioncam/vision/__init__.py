"""Pure vision: bytes -> canvas, network, CAM, crop, and their composition.

Knows nothing about files, Ray or class names. Shape legend for the whole package:
`B` batch, `C` feature channels, `K` classes, `S` canvas side, `s` input side, `h, w` map rows and
columns (h = w).
"""
