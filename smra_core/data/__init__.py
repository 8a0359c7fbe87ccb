"""The artist's pictures, masks, clips and captions, cropped to the training size."""
