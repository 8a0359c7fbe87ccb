"""Comparison of the method's variants on the miniature."""
