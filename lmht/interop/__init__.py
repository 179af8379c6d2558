"""Other libraries beside ours; each module needs its library, ``pip install lmht[interop]`` or ``lmht[nir]``."""
