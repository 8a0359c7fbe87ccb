"""Read the user's pictures, masks, clips and captions, and crop them to the training size."""
