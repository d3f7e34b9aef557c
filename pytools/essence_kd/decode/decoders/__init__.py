"""The decoders, one file each: the entry ``kaldi-lattice`` of decoder.DECODERS is in ``kaldi_lattice.py``."""
