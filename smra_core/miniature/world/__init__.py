"""The miniature's world: sprites on backgrounds that move, with known masks and optical flow."""
