"""What a network does with an image: its attention, filters, receptive fields and evidence, as pictures and a page."""
