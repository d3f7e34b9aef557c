"""The kinds of GMM that the native engine trains, each from the one before it; needs nothing but Python."""

KINDS = ("mono", "tri1", "tri2", "tri3")
DEFAULT = "tri2"
