"""Images for classification: sources, transforms, loaders, mixing, token labels."""
