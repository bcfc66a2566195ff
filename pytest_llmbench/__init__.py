"""pytest-llmbench: benchmarks of locally served language models as a pytest suite.

Importing this package imports nothing else; every part is imported where it is used.
"""

__version__ = "0.1.0"
