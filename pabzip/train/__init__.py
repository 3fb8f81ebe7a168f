"""Training: settings, the loop, callbacks, evaluation, and what a step costs.

The public names are declared once, in ``__init__.pyi``, and imported on first use, so that reading
settings or a checkpoint does not load the whole of training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
