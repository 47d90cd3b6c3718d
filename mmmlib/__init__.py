"""Cross-modal clustering primitives for unsupervised visible-infrared person re-identification.

Import from the modules: ``from mmmlib.matching import multi_memory_match``.
"""

__version__ = "0.1.0"
