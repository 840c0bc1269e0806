"""Data that the code makes itself, with nothing to download: the handwritten digits, and scenes of them."""
