"""Other libraries' networks and neurons beside ours; each module needs its library, ``pip install lmht[interop]``."""
