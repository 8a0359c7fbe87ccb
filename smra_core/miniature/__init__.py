"""A tiny WAN that ships with the pack, trained from scratch on rendered sprites, to show how the method
works.
"""
