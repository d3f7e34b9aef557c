"""The rates that audio, features and networks have where nothing else is said."""

SAMPLE_RATE = 8000  # Hz, of telephone speech
FRAME_SHIFT_MS = 10.0  # between two feature frames
FRAME_SUBSAMPLING_FACTOR = 3  # feature frames per row of a network's output: output row t looks at feature frame 3 t
