"""The embedded default: a tiny WAN, trained from scratch on rendered sprites, on which the method can be
seen.
"""
