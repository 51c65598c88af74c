"""mmalign: multimodal alignment that does not forget.

Importing the package is cheap on purpose: torch and everything heavier is imported by the modules that need it.
"""

__version__ = "0.1.0"
