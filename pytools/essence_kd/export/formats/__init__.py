"""The formats, one file each: the entry ``onnx`` of format.FORMATS is in ``onnx.py``."""
