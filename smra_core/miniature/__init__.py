"""A tiny WAN that ships with the pack, trained from scratch on rendered sprites, on which the method can be
seen.
"""
