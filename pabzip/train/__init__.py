"""Training: settings, the loop, callbacks, evaluation, and what a step costs.

The public names are declared once, in ``__init__.pyi``, and imported on first use, so that reading
settings or a checkpoint does not load the whole of training.
"""

from pabzip._optional import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__, extra="train")
