"""Vision: bytes to canvas, network, CAM and crop, and the classifier that composes them.

Knows nothing about files, Ray or class names. Shape legend for the whole package: `B` batch,
`C` feature channels, `K` classes, `S` canvas size, `s` input size, `h, w` rows and columns of a
map (h = w).

- `decode`: an image file's bytes to a canvas; `decoder`: the same in a process of its own.
- `formats`: what a file's bytes are. `color`: ICC profiles. `repair`: files with broken metadata.
- `network`: VGG-GAP. `cam`: its class activation maps. `crop`: boxes and their pixels.
- `classifier`: both stages, composed of these. `calibration`: of their probabilities.
- `operating_points`: thresholds, and a model with them.
- `engine`: a network ready for inference. `ranges`: the activation ranges that int8 needs.
- `augment`: random geometry and color. `lesion_masks`: masks estimated from color.
- `copies`: images that show the same picture.
- `metrics`: AUC and its intervals. `overlap`: maps and boxes against masks.
"""
