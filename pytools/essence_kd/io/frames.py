"""The frame rates that features and networks have where nothing else is said."""

FRAME_SHIFT_MS = 10.0  # between two feature frames
FRAME_SUBSAMPLING_FACTOR = 3  # feature frames a row of a network's output: output row t looks at feature frame 3 t
